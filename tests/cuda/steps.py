"""Training steps on a device: a step, and a way to take many of them as a run does."""

import torch
from torch import nn

from cnsn_cli.network.memory_format import place
from cnsn_cli.task import Task
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.step import TrainingStep
from tests.conftest import built

CUDA = torch.device("cuda")
SAMPLES, BATCH, EPOCH = 96, 8, 10  # EPOCH: steps


def new_step(
    arch: str,
    exits: tuple[int | str, ...],
    changes: dict[str, object] | None = None,
    capture: bool = True,
    precision: str = "fp32",
    size: int = 32,
    last: nn.Module | None = None,
) -> TrainingStep:
    """A step of `arch` on CUDA; `last` is one more layer at the end of its first unit."""
    recipe = load_recipe("paper", {"batch_size": BATCH, "lr": 0.01, "epochs": 9, **(changes or {})})
    network = built(arch, exits, Task.plain(image_size=size), recipe.bn)
    if last:
        network.units[0] = nn.Sequential(network.units[0], last)
    labels = torch.randint(10, (SAMPLES,), generator=torch.Generator().manual_seed(1))
    return TrainingStep(place(network, CUDA).train(), labels.to(CUDA), recipe, precision, capture)


def take(step: TrainingStep, steps: int) -> None:
    """Take steps with numbers of their own. The last step of each epoch also measures, as in a run."""
    torch.manual_seed(3)  # for dropout
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        if number % EPOCH == 0:
            step.begin(plan_epoch(SAMPLES, step.recipe, 1 + number // EPOCH, CUDA))
        pixels = torch.randint(256, step.pixels.shape, dtype=torch.uint8, generator=generator)
        indices = torch.randperm(SAMPLES, generator=generator)[:BATCH]
        scales = step.recipe.gradient_scales(len(step.step_downs), number / steps)
        step.set(indices, pixels, 0.02 / (1 + number % 5), scales, number)
        if number % EPOCH == EPOCH - 1:
            step.measured()
        else:
            step()
