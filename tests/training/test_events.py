"""The events that `train` and `resume` pass to a function of the user, and what that function may do."""

import json
import signal

import pytest

import cnsn_cli
from cnsn_cli.training.signals import Stopped
from tests.conftest import TINY


@pytest.fixture(scope="module")
def recipe():
    return cnsn_cli.load_recipe("quick", {"epochs": 2, "batch_size": 16})


@pytest.fixture(scope="module")
def watched(recipe, image_folder, tmp_path_factory):
    """A run folder, and the events of its run."""
    events, folder = [], tmp_path_factory.mktemp("watched")
    cnsn_cli.train(TINY, (1,), str(image_folder), recipe, folder, watch=events.append)
    return folder, events


def test_the_events_come_in_order(watched):
    """64 training images in batches of 16 are 4 steps."""
    _, events = watched
    epoch = [cnsn_cli.Step] * 4 + [cnsn_cli.Epoch]
    assert [type(event) for event in events] == [cnsn_cli.Started, *epoch, *epoch]
    assert (events[0].train_images, events[0].held_out_images, events[0].steps_per_epoch) == (64, 16, 4)
    assert [(e.epoch, e.step, e.steps) for e in events if isinstance(e, cnsn_cli.Step)] == [
        (epoch, step, 4) for epoch in (1, 2) for step in (1, 2, 3, 4)
    ]


def test_an_epoch_tells_what_the_metrics_say(watched):
    folder, events = watched
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [event for event in events if isinstance(event, cnsn_cli.Epoch)]
    for line, event in zip(lines, epochs, strict=True):
        for name in ("epoch", "lr", "seconds", "images_per_second"):
            assert line[name] == getattr(event, name)
        for name in ("train", "results"):
            shown = [(r.name, r.accuracy, r.loss) for r in getattr(event, name)]
            assert [(r["name"], r["accuracy"], r["loss"]) for r in line[name]] == shown


class Enough(Exception):
    """What a user raises in `watch`."""


def own_error() -> None:
    raise Enough


@pytest.mark.parametrize(
    ("end", "error", "steps_done"),
    [(own_error, Enough, 0), (lambda: signal.raise_signal(signal.SIGINT), Stopped, 6)],
)
def test_a_run_that_its_watcher_ends_can_go_on(
    watched, recipe, image_folder, tmp_path, end, error, steps_done
):
    """It ends in the weights of a run that nobody ended; only a signal saves the steps before the end."""

    def watch(event):
        if isinstance(event, cnsn_cli.Step) and (event.epoch, event.step) == (2, 1):
            end()

    with pytest.raises(error):
        cnsn_cli.train(TINY, (1,), str(image_folder), recipe, tmp_path / "run", watch=watch)
    events = []
    cnsn_cli.resume(tmp_path / "run", watch=events.append)
    assert events[0].steps_done == steps_done
    last = [(folder / "last.safetensors").read_bytes() for folder in (tmp_path / "run", watched[0])]
    assert last[0] == last[1]
