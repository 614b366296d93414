"""A process that reads images and dies ends every command in one line."""

import multiprocessing
import os
import signal
import sys

import pytest
import torch

from cnsn_cli.data import datasets, sources
from cnsn_cli.data.image_files import read_image
from cnsn_cli.data.split import FileSplit
from tests.conftest import TINY


@pytest.fixture
def deadly(monkeypatch):
    """A function: from now on workers read images, and one dies by the signal once the path exists."""
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)

    def install(number, path):
        def read(image, view=None):
            if multiprocessing.parent_process() and path.exists():
                os.kill(os.getpid(), number)
            return read_image(image, view)

        monkeypatch.setattr(sources, "read_image", read)

    return install


@pytest.mark.skipif(sys.platform != "linux", reason="other systems spawn")
def test_workers_are_forked_whatever_the_start_method_is():
    """A spawned worker would import torch in every epoch; and nobody could send it this function."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        split = FileSplit(None, lambda read, number: torch.tensor([number]), torch.arange(8), torch.zeros(8))
        (batch,) = split.batches([torch.arange(8)])
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert batch.flatten().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("command", "number", "cause"),
    [
        ("eval", signal.SIGKILL, "was killed, most likely because memory is full"),
        ("predict", signal.SIGBUS, "has ended, most likely because /dev/shm is full"),
    ],
)
def test_a_worker_that_dies_ends_a_command(cnsn, checkpoint, image_folder, deadly, command, number, cause):
    deadly(number, checkpoint)
    result = cnsn(command, checkpoint, *((image_folder / "test",) if command == "predict" else ()))
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(f"cnsn: a process that reads images {cause}")


def test_a_worker_that_dies_ends_training_and_the_run_can_be_resumed(cnsn, image_folder, tmp_path, deadly):
    run = tmp_path / "run"
    deadly(signal.SIGKILL, run / "state.safetensors")
    words = ("--arch", TINY, "--exits", "", "--data", image_folder, "--recipe", "quick", "--batch-size", 8)
    result = cnsn("train", *words, "--epochs", 1, "--out", run)
    assert result.code == 1
    *_, line = result.err.splitlines()
    assert line.startswith("cnsn: a process that reads images was killed")
    assert line.endswith(f"; to go on: cnsn train --resume {run}")
    deadly(signal.SIGKILL, tmp_path / "nothing")
    assert cnsn("train", "--resume", run).code == 0
