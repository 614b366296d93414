"""`--profile`: a trace of some steps in the run folder."""

import json

import pytest
import torch
from torch.profiler import profile

from cnsn_cli.errors import OutputError
from cnsn_cli.training.profiling import traced
from tests.conftest import TINY


def names_in(trace) -> list[str]:
    return [event["name"] for event in json.loads(trace.read_text())["traceEvents"] if "name" in event]


@pytest.mark.parametrize(("batch_size", "steps"), [(2, 20), (16, 3), (64, 1)])
def test_a_trace_of_some_steps(cnsn, image_folder, tmp_path, batch_size, steps):
    """64 images: 32 steps, of which 5 are left out and 20 traced; 4 steps, of which 3 are traced; 1 step."""
    words = ("--arch", TINY, "--exits", 1, "--data", image_folder, "--recipe", "quick", "--epochs", 1)
    words += ("--batch-size", batch_size, "--device", "cpu", "--out", tmp_path)
    done = cnsn("train", *words, "--profile")
    assert done.code == 0, done.err
    names = names_in(tmp_path / "trace.json")
    assert sum(name.startswith("aten::_fused_sgd_") for name in names) == steps
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_trace_is_no_part_of_the_state(cnsn, checkpoint):
    done = cnsn("train", "--resume", checkpoint.parent, "--profile")
    assert done.code == 2
    assert "--resume cannot be combined with --profile" in " ".join(done.err.replace("│", " ").split())


def fail_after_nine_steps(trace) -> None:
    with traced(trace, steps_left=100) as after_step:
        for _ in range(9):
            after_step()
        assert torch.autograd._profiler_enabled()
        raise ZeroDivisionError


def test_the_profiler_ends_with_a_run_that_ends_early(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_after_nine_steps(tmp_path / "trace.json")
    assert not torch.autograd._profiler_enabled()
    assert not list(tmp_path.iterdir())


def test_a_trace_for_which_the_disk_has_no_room(tmp_path, monkeypatch):
    """The profiler then leaves the beginning under a name of its own, and raises nothing."""

    def export(self, name: str) -> None:
        with open(f"{name}.tmp", "w") as file:
            file.write("{")

    monkeypatch.setattr(profile, "export_chrome_trace", export)
    with (
        pytest.raises(OutputError, match=r"trace\.json is not written.*the disk is full"),
        traced(tmp_path / "trace.json", steps_left=1) as after_step,
    ):
        after_step()
    assert not list(tmp_path.iterdir())
