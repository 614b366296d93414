"""Runs that start from a file on the Hub: they record its address, and do not fetch it again unasked."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from cnsn_cli.errors import HubError
from cnsn_cli.training import recorder
from cnsn_cli.training import run as runs
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import resume, train
from tests.commands.test_lacks import one_line
from tests.conftest import TINY

ADDRESS = "hf://user/repo"
FEW = {"limit_images": 16}


class Stop(Exception):
    pass


def stop(event):
    if isinstance(event, runs.Epoch):
        raise Stop


@pytest.fixture
def recipe(quick, monkeypatch):
    monkeypatch.setattr(recorder, "EPOCHS_APART", 0)
    return quick.model_copy(update={"epochs": 2})


@pytest.fixture
def stopped(repo, checkpoint, image_folder, recipe, tmp_path):
    """A run on a base-model from the Hub that was stopped after its first epoch."""
    repo.add(checkpoint, "model.safetensors")
    with pytest.raises(Stop):
        train(TINY, (2,), str(image_folder), recipe, tmp_path / "run", freeze_base=ADDRESS, watch=stop, **FEW)
    return tmp_path / "run"


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_run_on_an_address_resumes_from_the_cache(
    stopped, checkpoint, image_folder, recipe, tmp_path, monkeypatch
):
    assert read_state(stopped / "state.safetensors").request.freeze_base == ADDRESS
    download, asked = huggingface_hub.hf_hub_download, []

    def watched(*arguments, **options):
        asked.append(options["local_files_only"])
        return download(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", watched)
    resume(stopped)
    assert asked == [True]
    assert read_state(stopped / "state.safetensors").request.freeze_base == ADDRESS
    train(TINY, (2,), str(image_folder), recipe, tmp_path / "local", freeze_base=checkpoint, **FEW)
    assert same(stopped / "last.safetensors", tmp_path / "local" / "last.safetensors")


def test_a_recorded_address_is_fetched_only_if_it_is_given_again(
    cnsn, stopped, checkpoint, repo, monkeypatch
):
    shutil.rmtree(repo.folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    line = one_line(cnsn("train", "--resume", stopped))
    assert line.endswith(f"there is no copy in the cache: to fetch it again, give --freeze-base {ADDRESS}")
    asked = []

    def download(*arguments, **options):
        asked.append(options["local_files_only"])
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert cnsn("train", "--resume", stopped, "--freeze-base", ADDRESS).code == 0
    assert asked == [False]


def test_the_command_takes_the_data_of_an_address(cnsn, repo, checkpoint, tmp_path):
    repo.add(checkpoint, "model.safetensors")
    words = ("--exits", "2", "--recipe", "quick", "--epochs", 1, "--batch-size", 8, "--limit-images", 16)
    done = cnsn("train", "--freeze-base", ADDRESS, *words, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    base = {name: tensor for name, tensor in load_file(checkpoint).items() if name.startswith("head.")}
    trained = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in base.items())


def test_init_takes_an_address(cnsn, repo, checkpoint, image_folder, tmp_path):
    repo.add(checkpoint, "model.safetensors")
    words = ("--exits", "1", "--data", image_folder, "--recipe", "quick", "--epochs", 1, "--lr", 1e-9)
    options = ("--batch-size", 8, "--limit-images", 16, "--init", ADDRESS, "--out", tmp_path / "run")
    done = cnsn("train", "--arch", TINY, *words, *options)
    assert done.code == 0, done.err
    assert read_state(tmp_path / "run" / "state.safetensors").request.init == ADDRESS
    started, trained = load_file(checkpoint), load_file(tmp_path / "run" / "last.safetensors")
    for name, tensor in started.items():
        if name.startswith(("units.", "head.")) and name.endswith((".weight", ".bias")):
            torch.testing.assert_close(trained[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("option", ["--init", "--freeze-base"])
def test_a_wrong_address_ends_the_command_at_once(cnsn, repo, image_folder, tmp_path, option):
    words = ("--exits", "1", "--data", image_folder, "--recipe", "quick", "--out", tmp_path / "run")
    for address, message in (
        ("hf://user", "'hf://user' is no address: give "),
        ("hf://user/repo/weights.bin", "hf://user/repo/weights.bin is not fetched: only files that end in "),
        ("hf://user/nowhere", "hf://user/nowhere: the Hub cannot be reached"),
    ):
        result = cnsn("train", "--arch", TINY, *words, option, address)
        assert one_line(result).startswith(f"cnsn: {message}")
        assert not (tmp_path / "run").exists()


def test_a_request_of_python_users_is_checked(repo, image_folder, quick, tmp_path):
    with pytest.raises(HubError, match="is no address"):
        train(TINY, (1,), str(image_folder), quick, tmp_path / "run", init="hf://user")
    assert not (tmp_path / "run").exists()
