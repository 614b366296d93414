"""Where the time of a run goes: in metrics.jsonl, in the result, and in one line at the end."""

import json
import time

import pytest

from cnsn_cli import phases
from cnsn_cli.phases import collected, each, phase, taken, totals
from cnsn_cli.training.run import train
from tests.conftest import TINY

NAMES = {"reading", "building", "compiling", "training", "evaluating", "waiting for the disk", "other"}


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(phases, "time", moved)
    return moved


def nonzero(seconds: dict[str, float]) -> dict[str, float]:
    assert seconds.keys() == NAMES
    return {name: value for name, value in seconds.items() if value}


def test_a_second_counts_for_the_innermost_phase(clock):
    with collected():
        clock.now += 100  # no phase
        with phase("training"):
            clock.now += 1
            with phase("evaluating"):
                clock.now += 2
            clock.now += 4
        assert nonzero(taken()) == {"training": 5, "evaluating": 2, "other": 100}
        with phase("training"):
            clock.now += 8
        assert nonzero(taken()) == {"training": 8}
        assert nonzero(totals()) == {"training": 13, "evaluating": 2, "other": 100}
    assert totals() == {}


def test_the_time_of_items_is_that_of_making_them(clock):
    def slow():
        for number in range(3):
            clock.now += 1
            yield number

    with collected():
        for number in each("reading", slow()):
            clock.now += 10 * number
        assert nonzero(totals()) == {"reading": 3, "other": 30}


def test_an_error_ends_a_phase(clock):
    with collected():
        with pytest.raises(ZeroDivisionError), phase("training"):
            raise ZeroDivisionError
        clock.now += 1
        assert nonzero(totals()) == {"other": 1}


def test_the_phases_of_a_run_are_its_time(image_folder, tmp_path, quick):
    start = time.perf_counter()
    run = train(TINY, (1,), str(image_folder), quick.model_copy(update={"epochs": 3}), tmp_path)
    took = time.perf_counter() - start
    lines = [json.loads(line)["phases"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.keys() for line in lines] == [NAMES] * 3
    for name in ("reading", "building"):
        assert lines[0][name] > 0
        assert name != "building" or lines[1][name] == lines[2][name] == 0
    for line in lines:
        assert line["training"] > 0
        assert line["evaluating"] > 0
    assert sum(run.phases.values()) == pytest.approx(took, rel=0.05)
    assert sum(line["training"] for line in lines) == pytest.approx(run.phases["training"], abs=0.01)


def test_one_line_at_the_end_says_where_the_time_went(cnsn, image_folder, tmp_path):
    words = ("--arch", TINY, "--exits", 1, "--data", image_folder, "--recipe", "quick", "--epochs", 10)
    done = cnsn("train", *words, "--batch-size", 8, "--out", tmp_path, "--json")
    (line,) = [line for line in done.err.splitlines() if line.startswith("time: ")]
    told = json.loads(done.out)["phases"]
    assert told.keys() == NAMES
    assert f"training {told['training']:,.1f} s" in line
