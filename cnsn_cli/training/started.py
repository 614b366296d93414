"""The event that comes before the first step of a run: what is trained, on what, and how.

`run` and `dry_run` make it, and progress bars and trackers show it. This module does not know what follows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cnsn_cli.choices import Precision, Selection
from cnsn_cli.device import emulates_bf16, slowdown_of_bf16
from cnsn_cli.training.request import Request
from cnsn_cli.training.setup import Prepared
from cnsn_cli.training.step import TrainingStep


@dataclass(frozen=True)
class Started:
    """Event: everything is ready, and the first step follows.

    `selection` says which images choose the best epoch. `limit_images` is the limit on each split, or None.
    `skipped` has a line for each image that was left out, with the reason; `notes` say what else was left
    out. `drawn` names the weights of the classifier that start at random, because the given weights are for
    another number of classes.
    """

    train_images: int
    held_out_images: int
    steps_per_epoch: int
    steps_done: int
    selection: Selection
    limit_images: int | None
    device: torch.device
    skipped: tuple[str, ...]
    drawn: tuple[str, ...]
    notes: tuple[str, ...]
    precision: Precision
    compiled: bool
    captured: bool
    remarks: tuple[str, ...]


def started(prepared: Prepared, request: Request) -> Started:
    """The event that comes before the first step."""
    trainer, dataset, step = prepared.trainer, prepared.dataset, prepared.trainer.training_step
    return Started(
        train_images=len(trainer.train),
        held_out_images=len(trainer.held_out),
        steps_per_epoch=trainer.steps_per_epoch,
        steps_done=trainer.epoch * trainer.steps_per_epoch + trainer.step,
        selection=trainer.recipe.selection,
        limit_images=request.limit_images,
        device=trainer.device,
        skipped=dataset.skipped,
        drawn=() if trainer.epoch or trainer.step else prepared.drawn,
        notes=dataset.notes,
        precision=step.precision,
        compiled=step.is_compiled,
        captured=step.is_captured,
        remarks=tuple(_remarks(step, trainer.device)),
    )


def _remarks(step: TrainingStep, device: torch.device) -> Iterator[str]:
    if step.why_not_captured:
        yield f"a step is not captured as one graph: {step.why_not_captured}"
    if step.precision == "bf16" and emulates_bf16(device):
        slower = slowdown_of_bf16(device)
        yield f"no instructions for bf16 here: a conv takes {slower:.1f} times as long as in fp32"
