"""Several processes, started by torchrun, train the same network as one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cnsn_cli.errors import TrainingError
from cnsn_cli.training.run import resume
from tests import several
from tests.several import STEPS
from tests.training.test_resume import DROPOUT, assert_same_run

ROOT = Path(__file__).parents[1]
ENDS_WITHIN = 60  # seconds
LOST = (
    "cnsn: one of the 2 processes has ended or does not answer: start all of them again, with train --resume"
)


def run(count: int, *words: object, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m words` in `count` processes, which also find modules in `path`."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m"] if count > 1 else []
    command = [sys.executable, "-m", *launcher, *words]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def ours(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("cnsn: ")]


@pytest.fixture(scope="module")
def first(tmp_path_factory, image_folder) -> tuple[Path, subprocess.CompletedProcess[str], float]:
    """Two processes take some steps, train a run, and start another one, in which one of them dies.

    Returns their folder, how they ended, and how many seconds all of it took.
    """
    folder, start = tmp_path_factory.mktemp("several"), time.monotonic()
    done = run(2, "tests.several", "steps,die", folder, image_folder)
    return folder, done, time.monotonic() - start


def test_gradients_losses_and_accuracies_are_those_of_one_process(image_folder, first, tmp_path):
    several.steps(tmp_path, str(image_folder))
    one, two = (torch.load(folder / "facts.pt") for folder in (tmp_path, first[0]))
    for part in ("gradients", "weights"):
        largest = max(tensor.abs().max() for tensor in one[part].values())
        for name, expected in one[part].items():
            assert expected.dtype in (torch.float64, torch.int64)
            assert (two[part][name] - expected).abs().max() <= 1e-10 * largest, name
    for part in ("epoch", "results", "pulls"):
        assert two[part] == pytest.approx(one[part], rel=1e-9), part


def test_a_process_that_dies_ends_the_run_in_one_line_and_it_goes_on(first):
    folder, done, seconds = first
    assert done.returncode != 0
    assert seconds < ENDS_WITHIN
    assert ours(done.stderr) == [LOST]
    assert done.stdout == ""
    with pytest.raises(TrainingError, match="processes 2 -> 1"):
        resume(folder / "cut")
    done = run(2, "cnsn_cli", "train", "--resume", folder / "cut")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == done.stderr.count("training on 48 images") == 1
    assert_same_run(folder / "cut", folder / "whole")


@pytest.mark.faults
def test_a_process_that_hangs_ends_the_run_in_one_line(image_folder, tmp_path):
    done = run(2, "tests.several", "hang", tmp_path, image_folder)
    seconds = time.time() - (tmp_path / "stopped").stat().st_mtime
    print(f"\nended {seconds:.0f} s after a process stopped")
    assert done.returncode != 0
    assert ours(done.stderr) == [LOST]
    assert seconds < ENDS_WITHIN


@pytest.mark.faults
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_it_goes_on_from_every_step(distribution, image_folder, tmp_path, count, workers):
    distribution("other", {"other": DROPOUT}, {"dropout": "other:dropout"})
    words = ("tests.several", "every-step", tmp_path, image_folder, "--workers", workers)
    done = run(count, *words, path=tmp_path / "site-other")
    assert done.returncode == 0, done.stderr
    for step in range(1, STEPS + 1):
        assert_same_run(tmp_path / f"{step}", tmp_path / "whole")
