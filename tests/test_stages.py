"""What is being done while people wait: stages of the library, and the lines that commands make of them."""

from itertools import pairwise

import pytest
import torch

from cnsn_cli.stages import Stage, stage, told
from cnsn_cli.training.run import train
from cnsn_cli.training.started import Started
from tests.conftest import TINY


def test_a_stage_is_told_when_it_begins_and_when_it_is_done():
    heard = []
    with told(heard.append):
        with stage("counting"):
            assert heard == [Stage("counting")]
        assert (heard[1].what, heard[1].seconds >= 0) == ("counting", True)
        with pytest.raises(ValueError, match="no"), stage("failing"):
            raise ValueError("no")
    with stage("in silence"):
        pass
    assert [(one.what, one.seconds is None) for one in heard] == [
        ("counting", True), ("counting", False), ("failing", True)
    ]  # fmt: skip


def test_python_users_hear_the_stages_of_a_run_and_nothing_is_printed(image_folder, quick, tmp_path, capfd):
    heard = []
    with told(heard.append):
        train("torchvision:squeezenet1_1", (), str(image_folder), quick, tmp_path, watch=heard.append)
    before = heard[: next(number for number, event in enumerate(heard) if isinstance(event, Started))]
    assert [event.what for event in before if event.seconds is None] == [
        "reading 64 images",
        "measuring the mean and deviation of the pixels",
        "reading 16 images",
        "building torchvision:squeezenet1_1",
        "comparing its pieces with the whole network",
        "counting MACs",
    ]
    for begun, done in list(pairwise(before))[::2]:
        assert (begun.what, begun.seconds, done.seconds is None) == (done.what, None, False)
    assert capfd.readouterr() == ("", "")


def test_compiling_is_a_stage_of_the_first_step_only(image_folder, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    heard = []
    with told(heard.append):
        train(TINY, (1,), str(image_folder), quick, tmp_path, compiled="on")
    assert sum(one.what == "compiling the step" for one in heard) == 2


def test_train_and_resume_print_a_line_for_each_stage(cnsn, image_folder, tmp_path):
    words = ("--arch", TINY, "--exits", 1, "--data", image_folder, "--recipe", "quick", "--batch-size", 8)
    trained = cnsn("train", *words, "--epochs", 1, "--val-split", 0.25, "--out", tmp_path / "run")
    assert list(trained.stages) == [
        "loading PyTorch",
        "reading 64 images",
        "measuring the mean and deviation of the pixels",
        "reading 16 images",
        f"building {TINY}",
        "counting MACs",
        "evaluating the best epoch on 16 test images",
        "drawing plot.png",
    ]
    assert "going on" not in trained.err
    resumed = cnsn("train", "--resume", tmp_path / "run", "--epochs", 2, "--override")
    assert "restoring the state" in resumed.stages
    assert "going on with epoch 2 of 2\n" in resumed.err


def test_a_run_that_stopped_inside_an_epoch_says_where_it_goes_on(cnsn, image_folder, quick, tmp_path):
    class Stop(Exception):
        pass

    def watch(event):
        if getattr(event, "step", None) == 5:
            raise Stop

    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), quick, tmp_path / "run", save_every="1", watch=watch)
    assert (
        "going on with epoch 1 of 1, after step 5 of 8\n" in cnsn("train", "--resume", tmp_path / "run").err
    )


def test_other_commands_that_take_seconds(cnsn, checkpoint, image_folder, tmp_path):
    name, out = checkpoint.name, tmp_path / "small.pt2"
    assert list(cnsn("export", checkpoint, "--to", "pt2", "-o", out).stages) == [
        "loading PyTorch", f"opening {name}", "exporting base to pt2", "comparing the export with PyTorch"
    ]  # fmt: skip
    assert list(cnsn("bench", checkpoint, "--batch-sizes", "1,8", "--rounds", 2).stages) == [
        "loading PyTorch",
        f"opening {name}",
        "timing models in turns: batches of 1, threads: 1, rounds: 2",
        f"opening {name}",
        "timing models in turns: batches of 8, threads: 1, rounds: 2",
    ]
    assert list(cnsn("eval", checkpoint, "--recalibrate", 1).stages) == [
        f"opening {name}",
        "reading 16 images",
        "reading 64 images",
        "recomputing BN statistics, batches: 1",
        "evaluating on 16 test images",
    ]
    (picture,) = (image_folder / "test" / "dark").glob("03.png")
    assert cnsn("predict", checkpoint, image_folder / "test").stages[-1] == "predicting 16 images"
    assert cnsn("predict", checkpoint, picture).stages[1:] == ("reading 1 image", "predicting 1 image")
