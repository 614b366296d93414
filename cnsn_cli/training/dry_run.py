"""What a run would take, found out by trying a few of its steps. Nothing is left on the disk.

`cnsn train --dry-run` and Python users call `dry_run`. It begins as `train` does, in the same code. This
module does not know how a step is computed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cnsn_cli import distributed
from cnsn_cli.choices import Selection
from cnsn_cli.data.pixels import batch_size
from cnsn_cli.device import peak_memory
from cnsn_cli.evaluation.accuracy import evaluate
from cnsn_cli.stages import stage
from cnsn_cli.training.arguments import Arguments, called_like
from cnsn_cli.training.meter import finite
from cnsn_cli.training.recorder import file_sizes
from cnsn_cli.training.request import decide
from cnsn_cli.training.run import begun
from cnsn_cli.training.run_folder import most_bytes, tried
from cnsn_cli.training.started import started
from cnsn_cli.training.trainer import RECALIBRATION_BATCHES, Trainer

LONG_ENOUGH = 3.0  # seconds of steps, and of evaluation, to tell how long the others take


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    `selection` says which images choose the best epoch: those that are held out. `peak_memory` is the most
    that was taken, in bytes, from the GPU, or else from the memory by this process; of several processes, the
    most that one took. `epoch_seconds` follow from some steps and some evaluated images, and `seconds` are
    those of all epochs. `bytes` is the size of the finished files; the disk needs `most_bytes` for the moment
    in which new files replace old ones. Seconds and bytes are estimates.
    """

    train_images: int
    held_out_images: int
    selection: Selection
    epochs: int
    steps_per_epoch: int
    steps: int
    device: str
    peak_memory: int
    epoch_seconds: float
    seconds: float
    bytes: int
    most_bytes: int


@called_like(Arguments)
def dry_run(asked: Arguments) -> Forecast:
    """Try what `train` with the same arguments would do, and leave nothing on the disk. Returns a Forecast.

    A few steps are done and a few images are evaluated. Data sets and published weights that had to be
    downloaded stay. Raises every error that `train` raises before its first step.

    Arguments:
    """
    request, folder = decide(asked), Path(asked.out)
    with distributed.joined():
        with begun(request, asked, tried) as (recorder, prepared):
            sizes, request = file_sizes(recorder.trainer), recorder.request
        asked.watch(started(prepared, request))
        return _forecast(prepared.trainer, sizes, most_bytes(folder, sizes))


def _forecast(trainer: Trainer, sizes: dict[str, int], most: int) -> Forecast:
    recipe, steps = trainer.recipe, trainer.steps_per_epoch
    with stage("trying some steps"):
        training = _step_seconds(trainer) * (steps - 1) + _seconds(trainer, trainer.training_step.measured)
    with stage("trying to evaluate"):
        epoch = training + _evaluation_seconds(trainer)
    (memory,) = distributed.largest(peak_memory(trainer.device))
    return Forecast(
        train_images=len(trainer.train),
        held_out_images=len(trainer.held_out),
        selection=recipe.selection,
        epochs=recipe.epochs,
        steps_per_epoch=steps,
        steps=steps * recipe.epochs,
        device=str(trainer.device),
        peak_memory=memory,
        epoch_seconds=epoch,
        seconds=epoch * recipe.epochs,
        bytes=sum(sizes.values()),
        most_bytes=most,
    )


def _step_seconds(trainer: Trainer) -> float:
    """The seconds of a step, with reading its images. The first step is a warm-up, if there is another one.

    The last step of an epoch is left out, because it also measures gradients.
    """
    events = trainer.run()

    def do(steps: int) -> None:
        for _ in range(steps):
            next(events)

    warm_up, most = _seconds(trainer, do, 1), trainer.steps_per_epoch - 2
    done, seconds = 0, 0.0
    while done < most and seconds < LONG_ENOUGH:
        steps = min(done + 1, most - done)
        seconds += _seconds(trainer, do, steps)
        done += steps
    return seconds / done if done else warm_up


def _evaluation_seconds(trainer: Trainer) -> float:
    """The seconds that follow the last step of an epoch."""
    held_out, size = trainer.held_out, batch_size(trainer.network.task)
    together = size * distributed.size()

    def evaluate_some(batches: int) -> None:
        evaluate(trainer.trained, held_out.take(torch.arange(min(len(held_out), batches * together))))

    seconds = _of_all(trainer, evaluate_some, -(-len(held_out) // together))
    if trainer.average:
        batches = min(RECALIBRATION_BATCHES, -(-len(trainer.train) // size))
        seconds += _of_all(trainer, trainer.recalibrate, batches)
    return seconds


def _of_all(trainer: Trainer, work: Callable[[int], None], batches: int) -> float:
    """The seconds of `work` on `batches` batches: 1, 2, 4, ... are tried until that takes LONG_ENOUGH."""
    done, seconds = 1, _seconds(trainer, work, 1)
    while done < batches and seconds < LONG_ENOUGH:
        done = min(2 * done, batches)
        seconds = _seconds(trainer, work, done)
    return seconds * batches / done


def _seconds(trainer: Trainer, work: Callable[..., object], *amount: int) -> float:
    """The seconds of `work`, the longest of all processes. Raises TrainingError if a loss is not finite."""
    start = time.perf_counter()
    work(*amount)
    finite(
        trainer.meter.results(), 1, trainer.recipe.learning_rate(0, trainer.steps_per_epoch)
    )  # the device has done all by then
    (nanoseconds,) = distributed.largest(int((time.perf_counter() - start) * 1e9))
    return nanoseconds / 1e9
