"""`--profile`: a trace of some steps in the run folder."""

import json

import pytest

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
