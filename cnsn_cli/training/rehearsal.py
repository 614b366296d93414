"""Steps before the first one that counts: they find out how steps run here, and train nothing.

`setup` rehearses on CUDA, where a step may be captured and compiled. This module does not know the data: it
rehearses on black images.

    rehearse --> warm-up, capture --> seconds of a step --> is compiling worth it? --> compile, capture again
       \\_______________________ weights, statistics, momenta, random numbers restored _____________________/
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cnsn_cli import distributed
from cnsn_cli.device import fastest_convs
from cnsn_cli.errors import TrainingError
from cnsn_cli.stages import stage
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.capture import WARM_UP
from cnsn_cli.training.step import TrainingStep
from cnsn_cli.training.trainer import Trainer

TIMED = 10  # steps
COMPILING = 40.0  # seconds until the first compiled step; measured: 28 to 42 on a machine with an H200
SAVED = 0.4  # of a captured step; measured: 2.3 ms eager, 1.34 ms compiled (VGG-16, batch 32)


def rehearse(trainer: Trainer, undecided: bool = False) -> None:
    """Capture the step of `trainer`; if compiling is `undecided`, compile the step if that pays.

    Raises TrainingError if a step that was to be compiled cannot be.
    """
    step = trainer.training_step
    step.begin(plan_epoch(len(trainer.train), trainer.recipe, 1, trainer.device))
    with restored(step):
        seconds = _seconds(step)
        if undecided and pays(seconds, trainer.steps_per_epoch * trainer.recipe.epochs):
            _compile(step)
        with stage("trying a step"), fastest_convs():
            step.measured()  # the last step of an epoch, beside the memory that a graph keeps


def pays(seconds: float, steps: int) -> bool:
    """Whether compiling makes `steps` steps, of `seconds` each without it, faster as a whole."""
    return steps * seconds * SAVED > COMPILING


def _compile(step: TrainingStep) -> None:
    """Compile the step if there is a compiler that can."""
    try:
        step.compile()
        _seconds(step)
    except TrainingError:
        step.compile(False)
        _seconds(step)


def _seconds(step: TrainingStep) -> float:
    """The seconds of a step, the longest of all processes."""
    with stage("trying a step"), fastest_convs():
        for _ in range(WARM_UP + 1):
            step()
        _wait(step)
        start = time.perf_counter()
        for _ in range(TIMED):
            step()
        _wait(step)
    (nanoseconds,) = distributed.largest(int((time.perf_counter() - start) * 1e9 / TIMED))
    return nanoseconds / 1e9


def _wait(step: TrainingStep) -> None:
    step.meter.losses.sum().item()  # the device has done all before it answers


@contextmanager
def restored(step: TrainingStep) -> Iterator[None]:
    """After this context, everything that a step changes is as it was, in the same tensors.

    The optimizer makes momenta in its first step. They become zeros, which means the same as none.
    """
    network = step.network
    device = step.indices.device
    before = [(tensor, tensor.clone()) for tensor in _changing(step)]
    training = network.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network.train()
        yield
    network.train(training)
    for momentum in _momenta(step):
        momentum.zero_()
    for tensor, values in before:
        tensor.copy_(values)


def _changing(step: TrainingStep) -> list[Tensor]:
    tensors = [*step.network.parameters(), *step.network.buffers()]
    if step.average:
        tensors += step.average.averages
    return [tensor.detach() for tensor in tensors] + _momenta(step)


def _momenta(step: TrainingStep) -> list[Tensor]:
    return list(step.optimizer.memory().values())
