"""Losses, accuracies and speed, measured while a network trains.

The trainer adds every step; progress bars and `recorder` read the results. This module does not know how the
losses are computed.
"""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from cnsn_cli import distributed
from cnsn_cli.errors import TrainingError
from cnsn_cli.evaluation.accuracy import ModelResult


class Meter:
    """Losses and accuracies of an epoch so far. They stay on the device until `results` is called.

    `losses` (models,) are sums over `batches`, `correct` (models,) counts right answers. Each of several
    processes has a meter of its own, for its share of every batch.
    """

    def __init__(self, names: Sequence[str], batch_size: int, device: torch.device) -> None:
        self.names, self.batch_size = list(names), batch_size
        self.losses = torch.zeros(len(self.names), device=device)
        self.correct = torch.zeros_like(self.losses)
        self.restart()

    def restart(self) -> None:
        """Begin a new epoch."""
        self.batches = 0
        self.losses.zero_()
        self.correct.zero_()
        self.start = time.perf_counter()

    def add(self, losses: Tensor, correct: Tensor) -> None:
        """Add the sums of a step, in place. Whoever does the step counts it in `batches`."""
        self.losses += losses
        self.correct += correct

    def combine(self) -> None:
        """Average over all processes, so that every process has the same results."""
        self.losses.copy_(distributed.mean(self.losses))
        self.correct.copy_(distributed.mean(self.correct))

    def results(self) -> list[ModelResult]:
        images = self.batches * self.batch_size / distributed.size()
        losses = (self.losses / self.batches).tolist()
        accuracies = (self.correct / images).tolist()
        return [ModelResult(*row) for row in zip(self.names, accuracies, losses, strict=True)]

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def images_per_second(self) -> float:
        return self.batches * self.batch_size / self.seconds()


def finite(results: list[ModelResult], epoch: int, lr: float) -> list[ModelResult]:
    """Return `results` unchanged; raise TrainingError if a loss is not finite."""
    for result in results:
        if not math.isfinite(result.loss):
            raise TrainingError(
                f"the loss of {result.name} became {result.loss} in epoch {epoch} at a learning rate of "
                f"{lr:g}: lower --lr or lengthen --warmup-epochs"
            )
    return results
