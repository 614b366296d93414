"""What the trackers for Weights & Biases and Trackio ask of their libraries; stand-ins play the libraries."""

import sys
from types import SimpleNamespace

import pytest

from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.trackers.tracking import TrackedRun
from cnsn_cli.training.trackers.trackio import trackio
from cnsn_cli.training.trackers.wandb import wandb

EPOCHS = [Epoch(number, 0.1 * number, 2.0, 100.0, [], [], [], {"training": 1.5}) for number in (2, 3)]
NUMBERS = [
    {"lr": 0.1 * number, "seconds": 2.0, "images_per_second": 100.0, "phases/training": 1.5}
    for number in (2, 3)
]


class Service:
    """A stand-in for both libraries. Their run has logged the steps before `step`."""

    def __init__(self, step: int) -> None:
        self.step = self._next_step = step
        self.asked: dict[str, object] = {}
        self.logged: list[tuple[object, object]] = []
        self.ended = 0

    def init(self, **asked: object) -> "Service":
        self.asked = asked
        return self

    def log(self, values: object, step: int | None = None) -> None:
        self.logged.append((values, step))

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def finish(self) -> None:
        self.ended += 1

    @staticmethod
    def Image(path: str) -> str:
        return f"image {path}"


@pytest.fixture
def run(tmp_path):
    return TrackedRun(tmp_path / "demo", "0123456789abcdef", {"arch": "vgg16", "epochs": 3}, 1)


def record(monkeypatch, run, tracker, service: Service) -> None:
    monkeypatch.setitem(sys.modules, tracker.__name__, service)
    with tracker(run) as log:
        for event in (SimpleNamespace(epoch=1), *EPOCHS):  # the first is no Epoch
            log(event)


@pytest.mark.parametrize("tracker", [wandb, trackio])
@pytest.mark.parametrize("logged", [0, 3])
def test_every_epoch_is_logged_once(monkeypatch, run, tracker, logged):
    """With `logged` 3, an earlier start of the run has logged epoch 2 already."""
    service = Service(logged)
    record(monkeypatch, run, tracker, service)
    epochs = list(zip(NUMBERS, (2, 3), strict=True))
    last = 3 if tracker is trackio else None  # wandb adds to the step before
    picture = ({"plot": f"image {run.folder / 'plot.png'}"}, last)
    assert service.logged == [*(epochs[1:] if logged else epochs), picture]
    assert service.ended == 1
    assert (service.asked["config"], service.asked["resume"]) == (run.settings, "allow")


def test_names_that_the_user_has_set_hold(monkeypatch, run):
    for name in ("WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    service = Service(0)
    record(monkeypatch, run, wandb, service)
    assert (service.asked["name"], service.asked["id"]) == ("demo", run.id)
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "own")
    record(monkeypatch, run, wandb, service)
    assert (service.asked["name"], service.asked["id"]) == ("mine", "own")
    assert "project" not in service.asked


def test_a_run_of_trackio_has_a_name_of_its_own(monkeypatch, run):
    service = Service(0)
    record(monkeypatch, run, trackio, service)
    assert (service.asked["project"], service.asked["name"]) == ("cnsn", "demo-01234567")


@pytest.mark.parametrize("tracker", [wandb, trackio])
def test_a_run_that_fails_has_no_picture_and_is_ended(monkeypatch, run, tracker):
    service = Service(0)
    monkeypatch.setitem(sys.modules, tracker.__name__, service)
    with pytest.raises(KeyboardInterrupt), tracker(run):
        raise KeyboardInterrupt
    assert (service.logged, service.ended) == ([], 1)
