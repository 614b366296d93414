"""Training does not wait for the disk, and whatever is on the disk belongs together."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cnsn_cli.backbones import registry
from cnsn_cli.errors import OutputError
from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.files import writer
from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.training import recorder as recorders
from cnsn_cli.training.bundle import Bundle
from cnsn_cli.training.metrics import Epoch, Step
from cnsn_cli.training.recorder import Recorder
from cnsn_cli.training.request import Request
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.run_folder import BEST, LAST, METRICS, STATE
from cnsn_cli.training.setup import prepare
from tests.conftest import TINY
from tests.training.test_resume import Stop, stop_at_step

STEPS = 8  # of an epoch: 64 images in batches of 8
LONG = 30  # seconds; a test that waits so long fails


def check_together(folder: Path) -> int:
    """Check that models and metrics are those of the epochs of the state; returns their number."""
    state = read_state(folder / STATE)
    best, last, metrics = (folder / name for name in (BEST, LAST, METRICS))
    if state.epoch == 0:
        assert not any(path.exists() for path in (best, last, metrics))
        return 0
    assert metrics.read_text() == state.metrics
    assert metadata_in(last).selection.epoch == state.epoch
    assert metadata_in(best).selection.epoch == max(state.epochs(), key=lambda line: line.mean_accuracy).epoch
    return state.epoch


class Disk:
    """Notes every bundle that is written. While it is `stuck`, writing waits until `go` is called."""

    def __init__(self) -> None:
        self.written: list[Bundle] = []
        self.begun, self._free = threading.Event(), threading.Event()
        self._free.set()

    def write(self, bundle: Bundle) -> None:
        before = {name: tensor.clone() for name, tensor in bundle.tensors.items()}
        self.begun.set()
        assert self._free.wait(LONG), "training waits for the disk"
        assert all(torch.equal(tensor, before[name]) for name, tensor in bundle.tensors.items())
        real_write(bundle)
        self.written.append(bundle)

    def stick(self) -> None:
        self._free.clear()

    def go(self) -> None:
        self._free.set()


real_write = Bundle.write


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(Bundle, "write", lambda bundle: disk.write(bundle))
    yield disk
    disk.go()


def test_steps_do_not_wait_for_the_disk(image_folder, tmp_path, quick, disk):
    """The disk is stuck from the first step to the last, and what waits for it does not change."""
    steps = []

    def watch(event):
        if isinstance(event, Step):
            steps.append(event.step)
            if len(steps) == STEPS:
                assert disk.begun.wait(LONG)
                disk.go()

    disk.stick()
    train(TINY, (1,), str(image_folder), quick, tmp_path, save_every="1", watch=watch)
    states = [(bundle.state.epoch, bundle.state.step) for bundle in disk.written]
    assert states[0] == (0, 1)
    assert states[-1] == (1, 0)
    assert len(states) <= 3  # of those that waited the newest won
    assert check_together(tmp_path) == 1


def test_states_of_epochs_are_a_minute_apart(image_folder, tmp_path, quick, disk, monkeypatch):
    recipe, clock = quick.model_copy(update={"epochs": 4}), {"now": 1000.0}

    def watch(event):
        clock["now"] += {1: 59, 2: 2, 3: 0, 4: 0}[event.epoch] if isinstance(event, Epoch) else 0

    monkeypatch.setattr(recorders.time, "monotonic", lambda: clock["now"])
    train(TINY, (1,), str(image_folder), recipe, tmp_path, watch=watch)
    assert [bundle.state.epoch for bundle in disk.written] == [3, 4]  # after 61 s, and at the end


def test_a_state_within_an_epoch_brings_the_epochs_before(image_folder, tmp_path, quick):
    recipe = quick.model_copy(update={"epochs": 3})
    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), recipe, tmp_path, save_every="20", watch=stop_at_step(19))
    assert check_together(tmp_path) == 0
    with pytest.raises(Stop):
        resume(tmp_path, watch=stop_at_step(20))
    assert check_together(tmp_path) == 2
    assert read_state(tmp_path / STATE).step == 20 - 2 * STEPS


@pytest.fixture
def recording(image_folder, tmp_path, quick):
    """A recorder, and a function that makes the event of an epoch with this accuracy of all models."""
    request = Request(
        arch=TINY,
        exits=(1,),
        data=str(image_folder),
        recipe=quick.model_copy(update={"epochs": 9}),
        device="cpu",
        precision="fp32",
        compiled=False,
    )
    arch = registry.find(TINY)
    trainer, *_ = prepare(request, arch)
    first = next(event for event in trainer.run() if isinstance(event, Epoch))
    trainer.epoch = 0
    recorder = Recorder(tmp_path, trainer, request, arch)
    recorder.start()

    def epoch(number: int, accuracy: float) -> Epoch:
        trainer.epoch = number
        with torch.no_grad():  # the weights of each epoch are others
            next(trainer.network.parameters()).fill_(number)
        results = [ModelResult(result.name, accuracy, 1.0) for result in first.results]
        return replace(first, epoch=number, results=results)

    return recorder, epoch


def test_the_best_epoch_is_kept_until_it_is_out(recording, tmp_path, disk):
    """Epoch 2 is the best; its bundle waits behind that of epoch 1, and is overtaken. So is the last one."""
    recorder, epoch = recording
    with recorder.writing():
        disk.stick()
        recorder.take(epoch(1, 0.5))
        assert disk.begun.wait(LONG)
        for number, accuracy in ((2, 0.9), (3, 0.6), (4, 0.7)):
            recorder.take(epoch(number, accuracy))
        recorder.take(Step(5, 1, STEPS, recorder.trainer.meter))  # also this one waits, without models
        disk.go()
    assert [bundle.state.epoch for bundle in disk.written] == [1, 4]
    assert check_together(tmp_path) == 4
    assert metadata_in(tmp_path / BEST).selection.epoch == 2
    best, last = (bundle_tensor(disk.written[1], name) for name in ("best", "last"))
    assert (best, last) == (2, 4)


def bundle_tensor(bundle: Bundle, name: str) -> float:
    return float(next(iter(getattr(bundle, name).tensors.values())).max())


@pytest.mark.parametrize("done", [0, 1, 3], ids=["nothing", "a model", "all but the state"])
def test_nothing_is_written_after_a_second_ctrl_c(recording, tmp_path, monkeypatch, done):
    """The run has let go of its folder. A Python user may resume it while the thread is still there."""
    (recorder, epoch), reached, free = recording, threading.Event(), threading.Event()
    files = Bundle._files

    def slow_files(bundle: Bundle):
        for number, file in enumerate(files(bundle)):
            if number == done:
                reached.set()
                assert free.wait(LONG)
            yield file

    def interrupted() -> None:
        with recorder.writing():
            recorder.take(epoch(1, 0.5))
            assert reached.wait(LONG)
            raise KeyboardInterrupt

    monkeypatch.setattr(Bundle, "_files", slow_files)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    before = sorted(path.name for path in tmp_path.iterdir())
    free.set()
    wait_for_writers()
    assert sorted(path.name for path in tmp_path.iterdir()) == before == ["recipe.toml", STATE]
    assert check_together(tmp_path) == 0


def test_epochs_that_are_not_saved_come_with_the_next_state(recording, tmp_path, disk):
    recorder, epoch = recording
    with recorder.writing():
        for number, accuracy in ((1, 0.5), (2, 0.9), (3, 0.6)):
            recorder.take(epoch(number, accuracy), save=False)
        assert check_together(tmp_path) == 0
        recorder.take(Step(4, 1, STEPS, recorder.trainer.meter))
    (bundle,) = disk.written
    assert check_together(tmp_path) == 3
    assert (bundle_tensor(bundle, "best"), bundle_tensor(bundle, "last")) == (2, 3)
    with recorder.writing():
        recorder.take(Step(4, 2, STEPS, recorder.trainer.meter))
    assert disk.written[1].last is disk.written[1].best is None  # nothing is written twice


def fail_in_threads(monkeypatch, failed: threading.Event) -> None:
    sync = os.fsync

    def full(descriptor: int) -> None:
        if threading.current_thread() is threading.main_thread():
            return sync(descriptor)
        failed.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.os, "fsync", full)


def test_an_error_of_the_thread_ends_training_at_its_next_step(image_folder, tmp_path, quick, monkeypatch):
    failed, steps = threading.Event(), []
    fail_in_threads(monkeypatch, failed)

    def watch(event):
        if isinstance(event, Step):
            steps.append(event.step)
            if event.step == 3:
                assert failed.wait(LONG)
                wait_for_writers()

    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
        train(TINY, (1,), str(image_folder), quick, tmp_path, save_every="3", watch=watch)
    assert steps == [1, 2, 3]
    assert not list(tmp_path.glob(".*.tmp"))
    assert check_together(tmp_path) == 0


def wait_for_writers() -> None:
    """Wait until all threads that write have ended."""
    for thread in threading.enumerate():
        if thread.name == "writer":
            thread.join(LONG)


def test_an_error_at_the_end_is_one_line(cnsn, image_folder, tmp_path, monkeypatch):
    fail_in_threads(monkeypatch, threading.Event())
    words = ("--arch", TINY, "--exits", "1", "--data", image_folder, "--recipe", "quick", "--epochs", 1)
    done = cnsn("train", *words, "--batch-size", 8, "--out", tmp_path)
    assert done.code == 1
    *_, line = done.err.splitlines()
    assert line == f"cnsn: cannot write {tmp_path}/last.safetensors: No space left on device"
    assert "best epoch" not in done.out
