"""A resumed run ends in the weights of a run that was never stopped, bit for bit."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cnsn_cli.errors import CheckpointError, RecipeError, TrainingError
from cnsn_cli.files.checkpoint import digest, load, write_tensors
from cnsn_cli.files.tensor_file import LARGEST_HEADER
from cnsn_cli.training import recorder
from cnsn_cli.training import run as runs
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.resume_state import KEY, read_state, text_digest, write_state
from cnsn_cli.training.run import resume, train
from tests.conftest import TINY

DROPOUT = """
from torch import nn
from cnsn_cli import Backbone

def dropout(num_classes, in_channels, image_size):
    layers = [(nn.Conv2d(c, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)) for c in (3, 4, 4)]
    convs = [nn.Sequential(*unit) for unit in layers]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return Backbone(nn.Sequential(*convs), head, (1, 1, 1))
"""


class Stop(Exception):
    pass


@pytest.fixture(autouse=True, scope="module")
def states_of_all_epochs():
    """The runs here take less than the minute that must pass before an epoch ends with a state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "EPOCHS_APART", 0)
        yield


@pytest.fixture
def recipe(quick: Recipe) -> Recipe:
    changes = {"epochs": 4, "crop_padding": 2, "flip": "random", "val_split": 0.25, "seed": 3}
    return quick.model_copy(update=changes)


def stop_after(epoch: int):
    def watch(event):
        if isinstance(event, runs.Epoch) and event.epoch == epoch:
            raise Stop

    return watch


def without_times(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = ("seconds", "images_per_second", "phases")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def assert_same_run(ours: Path, reference: Path) -> None:
    for name in ("best", "last"):
        expected = load(reference / f"{name}.safetensors").state_dict()
        found = load(ours / f"{name}.safetensors").state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert without_times(ours / "metrics.jsonl") == without_times(reference / "metrics.jsonl")


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(image_folder, tmp_path, recipe, epoch):
    whole = train(TINY, (1, 4), str(image_folder), recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(TINY, (1, 4), str(image_folder), recipe, tmp_path / "cut", watch=stop_after(epoch))
    assert read_state(tmp_path / "cut" / "state.safetensors").epoch == epoch
    torch.manual_seed(99)  # stands for anything that happens between stopping and resuming
    finished = resume(tmp_path / "cut")
    assert (finished.best_epoch, finished.models) == (whole.best_epoch, whole.models)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_random_generator_is_part_of_the_state(distribution, image_folder, tmp_path, quick):
    distribution("other", {"other": DROPOUT}, {"dropout": "other:dropout"})
    recipe = quick.model_copy(update={"epochs": 2})
    train("dropout", (1,), str(image_folder), recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train("dropout", (1,), str(image_folder), recipe, tmp_path / "cut", watch=stop_after(1))
    torch.manual_seed(99)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_needs_no_data(cnsn, image_folder, tmp_path, quick):
    """It answers from its files, and a picture that a kill prevented is drawn."""
    moved, folder = tmp_path / "moved", tmp_path / "run"
    moved.symlink_to(image_folder)
    before = train(TINY, (1,), str(moved), quick, folder)
    moved.unlink()
    (folder / "plot.png").unlink()
    again = resume(folder)
    assert again == before
    assert again.phases.keys() == before.phases.keys()
    assert (folder / "plot.png").exists()
    assert "nothing is left to train" in cnsn("train", "--resume", folder).err


def test_a_finished_run_is_left_as_it_is(cnsn, checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.parent, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = cnsn("train", "--resume", folder, "--json")
    assert result.code == 0
    assert "is finished: nothing is left to train" in result.err
    assert json.loads(result.out)["best_epoch"] == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_environment_is_refused_or_accepted(checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.parent, folder)
    here = read_state(folder / "state.safetensors").environment
    assert here["instructions"].startswith(torch.backends.cpu.get_cpu_capability())
    monkeypatch.setattr(runs, "environment", lambda device: {**here, "threads": "64"})
    with pytest.raises(
        TrainingError, match=rf"trained differently \(threads {here['threads']} -> 64\): give --override"
    ):
        resume(folder)
    assert resume(folder, override=True).best_epoch == 1
    monkeypatch.setattr(runs, "environment", lambda device: {**here, "more": "than the state says"})
    assert resume(folder).best_epoch == 1


def test_no_run_to_resume(cnsn, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*state.safetensors: No such file"):
        resume(tmp_path)
    shutil.copy(checkpoint, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="is not the state of a training run"):
        resume(tmp_path)
    result = cnsn("train", "--resume", tmp_path, "--out", "x")
    assert result.code == 2
    assert "--resume cannot be combined with --out" in result.err


def test_what_differs_is_listed_and_refused_or_accepted(cnsn, checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.parent, folder)
    result = cnsn("train", "--resume", folder, "--arch", TINY, "--epochs", 2, "--lr", 0.01)
    assert result.code == 1
    assert "was trained differently (epochs 1 -> 2, lr 0.02 -> 0.01): give --override" in result.err
    for words in (("--exits", "1"), ("--bn", "shared"), ("--batch-size", 4)):
        result = cnsn("train", "--resume", folder, *words, "--override")
        assert result.code == 1
        assert "cannot go on with" in result.err
    result = cnsn("train", "--resume", folder, "--epochs", 2, "--override")
    assert result.code == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_same_recipe_again_is_no_change(cnsn, image_folder, tmp_path):
    """A recipe gives a baseline another weight decay, also with --resume."""
    same = ("--recipe", "paper", "--epochs", 1, "--batch-size", 8)
    words = ("--arch", TINY, "--exits", "", "--data", image_folder, *same)
    assert cnsn("train", *words, "--out", tmp_path / "run").code == 0
    result = cnsn("train", "--resume", tmp_path / "run", *same)
    assert result.code == 0, result.err


def stop_at_step(step: int):
    seen = []

    def watch(event):
        if isinstance(event, runs.Step):
            seen.append(event)
            if len(seen) == step:
                raise Stop

    return watch


@pytest.mark.parametrize("step", range(1, 13, 2))
def test_it_goes_on_from_any_step(image_folder, tmp_path, quick, step):
    changes = {"epochs": 2, "crop_padding": 2, "ema": 0.8, "gradient_scale": (0.5,), "val_split": 0.25}
    recipe = quick.model_copy(update={**changes, "distill": "base", "mix": "mixup"})
    train(TINY, (1,), str(image_folder), recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(
            TINY, (1,), str(image_folder), recipe, tmp_path / "cut",
            save_every="1", watch=stop_at_step(step),
        )  # fmt: skip
    state = read_state(tmp_path / "cut" / "state.safetensors")
    assert 6 * state.epoch + state.step == step
    torch.manual_seed(99)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_time_of_an_epoch_is_that_of_its_steps(image_folder, tmp_path, quick, monkeypatch):
    """For example steps on CUDA that find out whether compiling pays."""

    def slow_prepare(*arguments):
        prepared = prepare(*arguments)
        prepared.trainer.meter.start -= 1000
        return prepared

    prepare = runs.prepare
    monkeypatch.setattr(runs, "prepare", slow_prepare)
    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), quick, tmp_path, save_every="1", watch=stop_at_step(3))
    resume(tmp_path)
    (epoch,) = read_state(tmp_path / "state.safetensors").epochs()
    assert epoch.seconds < 500


@pytest.mark.parametrize("text", ["0", "-1", "m", "5s", "", "1.5"])
def test_intervals_that_are_none(image_folder, tmp_path, quick, text):
    with pytest.raises(RecipeError, match="give a number of steps such as 500, or minutes such as 10m"):
        train(TINY, (1,), str(image_folder), quick, tmp_path, save_every=text)


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(tmp_path, cnsn):
    words = ("--arch", TINY, "--exits", "1", "--data", "digits", "--recipe", "quick", "--epochs", "3")
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "cnsn_cli", "train", *words, "--out", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (line := process.stderr.readline()).startswith("epoch 1/"):
            assert line, "it ended before its first epoch"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert f"cnsn train --resume {folder}" in rest
    assert "Traceback" not in rest
    result = cnsn("train", "--resume", folder, "--override")
    assert result.code == 0
    assert re_epochs(result.err) == ["2", "3"]


def re_epochs(text: str) -> list[str]:
    return [
        line.split("/")[0].removeprefix("epoch ") for line in text.splitlines() if line.startswith("epoch ")
    ]


@pytest.mark.parametrize("name", ["random", "network.head.1.bias"])
def test_a_state_that_lacks_something_is_refused(checkpoint, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.parent, folder)
    path = folder / "state.safetensors"
    tensors = load_file(path)
    del tensors[name]
    write_state(path, tensors, read_state(path))
    with pytest.raises(CheckpointError, match=f"lacks tensor '{name}' of its architecture"):
        resume(folder, {"epochs": 9}, override=True)  # a finished run does not read its tensors


LONG = 12_000  # epochs; their metrics are longer than the 8 MiB that a header may have


def test_a_run_of_thousands_of_epochs_can_be_resumed(cnsn, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint.parent, tmp_path / "copy")
    path = folder / "state.safetensors"
    state = read_state(path)
    line = json.loads(state.metrics)
    metrics = "".join(json.dumps({**line, "epoch": epoch}) + "\n" for epoch in range(1, LONG + 1))
    assert len(metrics) > LARGEST_HEADER
    changes = {"epoch": LONG, "request": state.request.with_changes({"epochs": LONG}), "metrics": metrics}
    write_state(path, load_file(path), state.model_copy(update=changes))
    assert read_state(path).metrics == metrics
    result = cnsn("train", "--resume", folder, "--lr", 1)
    assert "(lr 0.02 -> 1.0)" in result.err


def test_states_with_metrics_in_their_header_are_read(cnsn, checkpoint, tmp_path):
    """The form of older versions."""
    folder = shutil.copytree(checkpoint.parent, tmp_path / "copy")
    path = folder / "state.safetensors"
    state, tensors = read_state(path), load_file(path)
    del tensors["metrics"]
    sha256 = {name: digest(tensor) for name, tensor in tensors.items()}
    text = state.model_copy(update={"sha256": sha256}).model_dump_json()
    write_tensors(path, tensors, KEY, f"{text_digest(text)} {text}")
    assert read_state(path).metrics == (folder / "metrics.jsonl").read_text()
    assert cnsn("train", "--resume", folder, "--epochs", 2, "--override").code == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_metrics_that_were_changed_are_refused(checkpoint, tmp_path):
    path = tmp_path / "state.safetensors"
    data = (checkpoint.parent / "state.safetensors").read_bytes()
    assert data.count(b'"epoch": 1') == 1
    path.write_bytes(data.replace(b'"epoch": 1', b'"epoch": 2'))
    with pytest.raises(CheckpointError, match="'metrics' is not as it was saved"):
        resume(tmp_path)


WORDY = """
from torch import nn

def wordy(num_classes):
    units = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    network = nn.Sequential()
    network.add_module("x" * 490, units)
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)])
    return network
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arch", TINY + "0" * 5000, "--exits", "1"), "arch: String should have at most 4096 characters"),
        (("--arch", "wordy:wordy", "--exits", "1"), "the name of a tensor is not 1 to 512 printable"),
    ],
)
def test_a_run_whose_files_could_not_be_read_is_refused_at_once(
    cnsn, image_folder, tmp_path, monkeypatch, words, message
):
    (tmp_path / "wordy.py").write_text(WORDY)
    monkeypatch.syspath_prepend(tmp_path)
    plugin = ("--plugin", "wordy:wordy") if "wordy:wordy" in words else ()
    always = ("--data", image_folder, "--recipe", "quick", "--batch-size", 8, "--out", tmp_path / "run")
    result = cnsn("train", *words, *plugin, *always)
    assert result.code == 1
    assert message in result.err
    assert "could not read it again" in result.err or "no file can record this network" in result.err
    assert "epoch 1" not in result.err
