"""A dry run: what it says, the errors that it shares with a run, and that it leaves nothing on the disk."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest

import cnsn_cli
from cnsn_cli.data import datasets
from cnsn_cli.training import dry_run as dry_runs
from cnsn_cli.training import run as runs
from cnsn_cli.training import run_folder
from cnsn_cli.training.run_folder import locked
from tests.conftest import TINY
from tests.test_distributed import run as in_processes


class Usage(NamedTuple):
    free: int


def contents(folder: Path) -> dict[Path, tuple[int, bytes] | None]:
    """Everything below `folder`; of each file the time, and what is in it."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_it_says_what_the_run_would_take(cnsn, tmp_path):
    words = ("train", "--arch", "vgg11:width=0.25", "--exits", "", "--data", "digits", "--epochs", 5)
    words = (*words, "--limit-images", 70, "--out", tmp_path / "runs" / "new", "--dry-run")
    result = cnsn(*words, "--json")
    assert result.code == 0, result.err
    assert "training on 70 images (--limit-images 70) on cpu" in result.err
    found = json.loads(result.out)
    # As in test_writer.py: best, last and state hold parameters and statistics, the state also momenta.
    parameters, statistics = 579_786 * 4, 1_376 * 4 + 8 * 8
    once = 4 * parameters + 3 * statistics
    assert (found["bytes"], found["most_bytes"]) == (once, 2 * once + 2**20)
    known = {"train_images": 70, "held_out_images": 70, "steps_per_epoch": 2, "epochs": 5, "steps": 10}
    assert found | known | {"selection": "test", "device": "cpu"} == found
    assert found["seconds"] == 5 * found["epoch_seconds"] > 0
    assert found["peak_memory"] > 2**26
    assert contents(tmp_path) == {}
    table = cnsn(*words).out
    for text in ("nothing was written", "10 (5 x 2)", "about 8.9 MiB", "about 18.7 MiB"):
        assert text in table


def test_python_users_get_the_same(cnsn, image_folder, tmp_path, quick):
    recipe, events = quick.model_copy(update={"val_split": 0.25, "ema": 0.5}), []
    asked = (TINY, (1, "@0.5"), str(image_folder), recipe, tmp_path / "run")
    found = cnsn_cli.dry_run(*asked, watch=events.append)
    assert (found.train_images, found.held_out_images, found.selection) == (48, 16, "validation")
    assert [type(event) for event in events] == [runs.Started]
    assert contents(tmp_path) == {}
    cnsn_cli.train(*asked)
    files = ("best", "last", "state")
    written = sum((tmp_path / "run" / f"{name}.safetensors").stat().st_size for name in files)
    assert found.bytes < written < found.bytes + run_folder.SMALL_FILES  # these are headers
    words = ("train", "--arch", TINY, "--exits", "1,@0.5", "--data", image_folder, "--recipe", "quick")
    words = (*words, "--epochs", 1, "--batch-size", 8, "--val-split", 0.25, "--ema", 0.5)
    same = json.loads(cnsn(*words, "--out", tmp_path / "other", "--dry-run", "--json").out)
    measured = {"peak_memory", "epoch_seconds", "seconds"}
    assert {key: same[key] for key in same if key not in measured} == {
        key: value for key, value in asdict(found).items() if key not in measured
    }


SLOW = """
import time
from torch import nn
from cnsn_cli import Backbone

class Slow(nn.Module):
    calls = []

    def forward(self, images):
        if len(images) == 8:  # a step; 1 or 2 images are to test the network
            time.sleep(0.05 if self.calls else 2)
            self.calls.append("step")
        if len(images) == 16:
            time.sleep(0.1)
        return images

def slow(num_classes, in_channels, image_size):
    unit = nn.Sequential(Slow(), nn.Conv2d(in_channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return Backbone(nn.Sequential(unit), head, (1,))
"""


@pytest.mark.parametrize(("long_enough", "steps"), [(3, 8), (0.1, 5)])
def test_seconds_are_those_of_steps_and_evaluation_without_the_warm_up(
    distribution, image_folder, tmp_path, quick, monkeypatch, long_enough, steps
):
    """The first step takes 2 s, the 7 others 0.05 s, and the evaluation 0.1 s: 8 x 0.05 + 0.1 s."""
    distribution("slow-nets", {"slowly": SLOW}, {"slow": "slowly:slow"})
    recipe = quick.model_copy(update={"epochs": 30})
    monkeypatch.setattr(dry_runs, "LONG_ENOUGH", long_enough)
    found = cnsn_cli.dry_run("slow", (), str(image_folder), recipe, tmp_path / "run")
    assert 0.5 <= found.epoch_seconds < 1.5
    assert found.seconds == 30 * found.epoch_seconds
    assert len(sys.modules["slowly"].Slow.calls) == steps


FORMS = {
    "widths": ("--exits", "2,@0.5"),
    "alone": ("--drop", "2"),
    "alone and narrow": ("--drop", "2@0.5"),
    "frozen": ("--exits", "2", "--freeze-base", "{checkpoint}"),
    "from a file": ("--exits", "2", "--init", "{weights}"),
    "in bf16": ("--exits", "2", "--precision", "bf16"),
    "a single step": ("--exits", "2", "--batch-size", 64),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_run_can_be_tried(cnsn, image_folder, checkpoint, tmp_path, form):
    places = {"{checkpoint}": checkpoint, "{weights}": tmp_path / "weights.safetensors"}
    cnsn("detach", checkpoint, "--submodel", "base", "-o", places["{weights}"])
    before = contents(tmp_path)
    words = ("--arch", TINY, "--data", image_folder, "--recipe", "quick", "--epochs", 1, "--batch-size", 8)
    given = (places.get(word, word) for word in FORMS[form])
    result = cnsn("train", *words, *given, "--out", tmp_path / "run", "--dry-run", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["train_images"] == 64
    assert contents(tmp_path) == before


def test_images_that_are_read_when_needed(image_folder, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    recipe = quick.model_copy(update={"ema": 0.5})
    assert cnsn_cli.dry_run(TINY, (1,), str(image_folder), recipe, tmp_path / "run").epoch_seconds > 0
    assert contents(tmp_path) == {}


def test_a_run_that_would_be_replaced_stays_as_it_is(cnsn, checkpoint, image_folder, tmp_path):
    """Files that killed runs left stay too, and no lock appears in a folder that has none."""
    run, empty = tmp_path / "run", tmp_path / "empty"
    for folder in (run, empty):
        folder.mkdir()
        (folder / ".best.safetensors.0a1b2c3d.tmp").touch()
    for path in checkpoint.parent.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    before = contents(tmp_path)
    words = ("train", "--arch", TINY, "--exits", "1", "--data", image_folder, "--recipe", "quick")
    for folder in (run, empty):
        result = cnsn(*words, "--out", folder, "--force", "--dry-run")
        assert result.code == 0, result.err
    assert contents(tmp_path) == before


ERRORS = {
    "a run is there": ((), "holds a run already: give --force to replace it, or --out another folder"),
    "a file is there": (("--out", "{file}"), "is a file: give --out another name"),
    "another run is at work": (("--out", "{busy}"), "another run is using"),
    "no room": (("--out", "{new}"), "the files of the run take"),
    "metadata": (("--out", "{new}", "--arch", TINY + "0" * 5000), "no file can record this network: arch"),
    "a batch": (("--out", "{new}", "--batch-size", 65), "a batch of 65 is more than the 64 training images"),
    "classes": (("--out", "{new}", "--classes", 3), "has 2 classes, not 3: leave out --classes"),
    "a word": (("--out", "{new}", "--save-every", "1h"), "--save-every '1h': give a number of steps"),
    "exits": (("--out", "{new}", "--exits", "9"), "9 is no detach point"),
    "a folder": (
        (
            "--out",
            "{file}/run",
        ),
        "Not a directory",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_those_of_the_run(cnsn, image_folder, checkpoint, tmp_path, monkeypatch, case):
    given, message = ERRORS[case]
    places = {"file": tmp_path / "file", "busy": tmp_path / "busy", "new": tmp_path / "runs" / "new"}
    places["file"].touch()
    places["busy"].mkdir()
    if case == "no room":
        monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda folder: Usage(1000))
    words = ("--arch", TINY, "--exits", "1", "--data", image_folder, "--recipe", "quick", "--batch-size", 8)
    words = ("train", *words, "--epochs", 1, "--out", checkpoint.parent)
    words = (*words, *(str(word).format(**places) for word in given))
    with locked(places["busy"]):
        before = contents(tmp_path), contents(checkpoint.parent)
        tried = cnsn(*words, "--dry-run")
        assert (contents(tmp_path), contents(checkpoint.parent)) == before
        real = cnsn(*words)
    assert (tried.code, tried.out) == (1, "")
    *_, last = tried.err.splitlines()
    *_, expected = real.err.splitlines()
    assert message in last
    assert last == expected.partition("; to go on:")[0]


def test_several_processes_agree_on_what_they_try(tmp_path):
    words = ("train", "--arch", TINY, "--exits", 1, "--data", "digits", "--ema", 0.9, "--limit-images", 500)
    done = in_processes(2, "cnsn_cli", *words, "--out", tmp_path / "run", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps_per_epoch"] == 500 // 32
    assert contents(tmp_path) == {}


def test_a_loss_that_is_not_finite(cnsn, image_folder, tmp_path):
    words = ("--arch", TINY, "--exits", "1", "--data", image_folder, "--recipe", "quick", "--batch-size", 8)
    result = cnsn("train", *words, "--lr", 1e30, "--warmup-epochs", 0, "--out", tmp_path / "run", "--dry-run")
    assert result.code == 1
    assert "the loss of base became nan in epoch 1" in result.err


def test_it_is_no_way_to_go_on(cnsn, checkpoint):
    result = cnsn("train", "--resume", checkpoint.parent, "--dry-run")
    assert result.code == 2
    assert "--resume cannot be combined with --dry-run" in result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals_leave_nothing(tmp_path, number, code):
    words = (
        "--arch",
        "vgg16:width=0.5",
        "--exits",
        "1",
        "--data",
        "digits",
        "--dry-run",
        "--out",
        str(tmp_path / "run"),
    )
    command = [sys.executable, "-m", "cnsn_cli", "train", *words]

    def heard() -> None:  # a shell in the background makes its programs deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        while not process.stderr.readline().startswith("the best epoch is chosen on"):
            pass
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in rest
    assert contents(tmp_path) == {}


def test_ctrl_c_while_the_folder_is_there(image_folder, tmp_path, quick, monkeypatch):
    def interrupted(folder, sizes):
        assert folder.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr("cnsn_cli.training.recorder.check_space", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cnsn_cli.dry_run(TINY, (1,), str(image_folder), quick, tmp_path / "runs" / "new")
    assert contents(tmp_path) == {}
