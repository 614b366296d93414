"""The forward pass of a training step: eager, or by torch.compile.

`step` calls it. This module does not know losses and optimizers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cnsn_cli.errors import TrainingError
from cnsn_cli.phases import phase
from cnsn_cli.stages import stage

Forward = Callable[[Tensor], list[Tensor]]


def eager(network: nn.Module) -> Forward:
    """The forward pass of a whole network or of one model, as a list of logits."""

    def run(images: Tensor) -> list[Tensor]:
        logits = network(images)
        return [logits] if isinstance(logits, Tensor) else logits

    return run


@contextmanager
def compiling() -> Iterator[None]:
    """A stage and a phase, for the first step: its forward and its backward pass are compiled in it."""
    with stage("compiling the step"), phase("compiling"):
        yield


def compiled(network: nn.Module) -> Forward:
    """The same, fused by torch.compile. Raises TrainingError if the compiler fails."""
    forward = eager(torch.compile(network))  # type: ignore[arg-type]

    def run(images: Tensor) -> list[Tensor]:
        try:
            return forward(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler has many ways to fail
            eager(network)(images)  # raises what is wrong with the network or the images themselves
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"torch.compile fails here ({reason}): give --compile off") from error

    return run
