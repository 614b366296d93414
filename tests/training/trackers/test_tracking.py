"""Trackers are told all that happens in a run, and none of their errors ends it."""

from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cnsn_cli import distributed
from cnsn_cli.training import recorder
from cnsn_cli.training.run import Epoch, Step, resume, train
from cnsn_cli.training.started import Started
from cnsn_cli.training.trackers.tracking import TrackedRun, TrackerFailed, tracked
from tests.conftest import TINY

RUN = TrackedRun(Path("folder"), "id", {"lr": 0.1}, 0)


class Kill(Exception):
    pass


class Notes:
    """A tracker that notes what happens to it, and raises `error` at some point: start, event or end."""

    def __init__(self, at: str = "", error: BaseException | None = None) -> None:
        self.at, self.error = at, error
        self.seen: list[object] = []

    def fail(self, at: str) -> None:
        if at == self.at and self.error:
            raise self.error

    @contextmanager
    def __call__(self, run: TrackedRun):
        self.fail("start")
        self.seen.append(run)
        try:
            yield self.note
        except BaseException as error:
            self.seen.append(error)
            raise
        finally:
            self.seen.append("closed")
            self.fail("end")

    def note(self, event: object) -> None:
        self.seen.append(event)
        self.fail("event")


def follow(trackers, events=("one", "two"), end: BaseException | None = None) -> list[object]:
    """What `watch` sees of a run with these trackers."""
    seen: list[object] = []
    with tracked(RUN, trackers, seen.append) as tell:
        for event in events:
            tell(event)
        if end:
            raise end
    return seen


def test_a_tracker_sees_what_watch_sees():
    notes = Notes()
    assert follow({"notes": notes}) == ["one", "two"]
    assert notes.seen == [RUN, "one", "two", "closed"]


@pytest.mark.parametrize(
    ("at", "seen"),
    [("start", []), ("event", [RUN, "one", "closed"]), ("end", [RUN, "one", "two", "closed"])],
)
def test_a_tracker_that_fails_is_told_once_and_closed(at, seen):
    error = KeyError("no such\nserver")
    bad, good = Notes(at, error), Notes()
    told = follow({"bad": bad, "good": good})
    failed = TrackerFailed("bad", "KeyError: 'no such\\nserver'")
    assert sorted(told, key=str) == sorted(["one", "two", failed], key=str)
    assert [part for part in bad.seen if part is not error] == seen
    assert good.seen == [RUN, "one", "two", "closed"]


@pytest.mark.parametrize("tracker", [lambda run: None, lambda: None, contextmanager(lambda run: iter(()))])
def test_what_is_no_tracker_fails_alone(tracker):
    (failed, *rest) = follow({"odd": tracker})
    assert isinstance(failed, TrackerFailed)
    assert rest == ["one", "two"]


@pytest.mark.parametrize("error", [ValueError("of the run"), KeyboardInterrupt()])
def test_the_error_of_the_run_goes_through_a_tracker(error):
    notes = Notes()
    with pytest.raises(type(error)) as caught:
        follow({"notes": notes}, end=error)
    assert caught.value is error
    assert notes.seen == [RUN, "one", "two", error, "closed"]


def test_a_tracker_cannot_swallow_the_error_of_the_run():
    @contextmanager
    def swallowing(run):
        with suppress(ValueError):
            yield print

    with pytest.raises(ValueError, match="of the run"):
        follow({"swallowing": swallowing}, end=ValueError("of the run"))


@pytest.mark.parametrize("at", ["start", "event", "end"])
def test_ctrl_c_in_a_tracker_ends_the_run(at):
    with pytest.raises(KeyboardInterrupt):
        follow({"notes": Notes(at, KeyboardInterrupt())})


def test_what_a_tracker_prints_is_no_part_of_the_output(capsys):
    @contextmanager
    def talking(run):
        print("start")
        yield print
        print("end")

    follow({"talking": talking}, ["event"])
    assert capsys.readouterr() == ("", "start\nevent\nend\n")


def test_only_the_first_of_several_processes_tracks(monkeypatch):
    waits: list[str] = []
    monkeypatch.setattr(distributed, "wait_for_all", lambda: waits.append("wait"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    epoch, step = Epoch(1, 0.1, 1.0, 1.0, [], [], [], {}), Step(1, 1, 1, None)
    for rank, seen in (("0", [RUN, step, epoch, "closed"]), ("1", [])):
        for name in distributed.VARIABLES:
            monkeypatch.setenv(name, {"RANK": rank, "WORLD_SIZE": "2"}.get(name, "0"))
        notes = Notes()
        assert follow({"notes": notes}, [step, epoch]) == [step, epoch]
        assert notes.seen == seen
    assert len(waits) == 2  # after the epoch, in both processes


PLUGIN = """
from contextlib import contextmanager

@contextmanager
def bad(run):
    yield lambda event: 1 / 0

@contextmanager
def good(run):
    assert run.settings["lr"] == 0.02 and run.settings["arch"].startswith("vgg11")
    names = []
    yield lambda event: names.append(type(event).__name__)
    drawn = (run.folder / "plot.png").exists()
    (run.folder / "good.txt").write_text(f"{run.id} {names[0]} {names[-1]} {drawn}")
"""


def test_a_run_with_a_tracker_that_fails(cnsn, distribution, image_folder, tmp_path):
    distribution("mine", {"mine": PLUGIN}, {"bad": "mine:bad", "good": "mine:good"}, "cnsn.trackers")
    words = ("--exits", "1", "--data", image_folder, "--recipe", "quick", "--epochs", 1, "--batch-size", 8)
    out = tmp_path / "run"
    result = cnsn(
        "train", "--arch", TINY, *words, "--lr", 0.02, "--out", out, "--track", "bad", "--track", "good"
    )
    assert result.code == 0
    warning = "warning: tracker bad has failed and records no more: ZeroDivisionError: division by zero\n"
    assert result.err.count("tracker") == result.err.count(warning) == 1
    assert {"starting bad", "starting good", "ending good"} <= set(result.stages)
    assert "ending bad" not in result.stages
    name, *rest = (out / "good.txt").read_text().split()
    assert (len(name), rest) == (32, ["Started", "Epoch", "True"])


def test_a_resumed_run_is_tracked_under_its_id(monkeypatch, image_folder, tmp_path, quick):
    """Other trackers are no difference that needs `override`."""
    monkeypatch.setattr(recorder, "EPOCHS_APART", 0)
    notes = Notes()
    monkeypatch.setattr("cnsn_cli.training.run.installed.find", lambda names: dict.fromkeys(names, notes))
    recipe = quick.model_copy(update={"epochs": 2})

    def stop(event: object) -> None:
        if isinstance(event, Step) and event.epoch == 2:
            raise Kill

    for track in (("a",), ("b",)):
        with pytest.raises(Kill):
            train(
                TINY,
                (1,),
                str(image_folder),
                recipe,
                tmp_path / "run",
                track=track,
                watch=stop,
                force=True,
            )
    first, second = (part for part in notes.seen if isinstance(part, TrackedRun))
    assert first.id != second.id
    assert (second.epochs_done, second.settings["track"]) == (0, ("b",))
    assert sum(isinstance(part, Started) for part in notes.seen) == 2
    notes.seen.clear()
    resume(tmp_path / "run", {"track": ("c",)})
    again = next(part for part in notes.seen if isinstance(part, TrackedRun))
    assert (again.id, again.epochs_done, again.settings["track"]) == (second.id, 1, ("c",))
