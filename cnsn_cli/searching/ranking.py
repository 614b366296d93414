"""Which candidate is the best for each budget, and how sure that is.

`search` and `inside` call this module with a trained network. It does not know how the network was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnsn_cli.choices import Selection
from cnsn_cli.data.split import Split
from cnsn_cli.evaluation.accuracy import all_logits
from cnsn_cli.evaluation.costs import ModelCost
from cnsn_cli.exits import Exit
from cnsn_cli.network.model import Model
from cnsn_cli.network.recalibration import recalibrate
from cnsn_cli.searching.grid import legal, serves
from cnsn_cli.stages import counted, stage

BATCHES = 10  # of training images, for the BN statistics of each candidate


@dataclass(frozen=True)
class Result:
    """A model, its cost, and its `accuracy` (0..1) on the images of a Found. `name` is a word: `7@0.5`."""

    name: str
    drops: int
    width: float
    macs: int
    parameters: int
    bytes: int
    accuracy: float


@dataclass(frozen=True)
class Pick:
    """The best candidate for a budget of MACs, and the runner-up, if there is one.

    `distance` is how many images, as a share, the best one gets right more; `error` is the standard error of
    the distance on the same images.
    """

    budget: int
    best: str
    runner_up: str | None = None
    distance: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Found:
    """What a search found: the base-model and all candidates, and a Pick for each budget.

    `images` is the number of images, and `selection` says which: those of a `validation` split, or the `test`
    images. `exits` are the best ones together, as `cnsn train --exits` takes them.
    """

    results: list[Result]
    picks: list[Pick]
    images: int
    selection: Selection
    exits: str


def rank(
    models: Sequence[Model],
    costs: Sequence[ModelCost],
    train: Split,
    held_out: Split,
    budgets: Sequence[int],
    selection: Selection = "validation",
) -> Found:
    """Measure the statistics of all sub-models again, evaluate, and compare. `models[0]` is the base-model.

    `held_out` are the images of `selection`.
    """
    with stage(f"recomputing the BN statistics of {counted(len(models) - 1, 'candidate')}"):
        recalibrate(models[1:], train, BATCHES)
    images = counted(len(held_out), f"{selection} image")
    with stage(f"evaluating on {images}"):
        right = _right([model.eval() for model in models], held_out)
    results = [
        Result(word(cost), cost.drops, cost.width, cost.macs, cost.parameters, cost.bytes, accuracy)
        for cost, accuracy in zip(costs, right.double().mean(1).tolist(), strict=True)
    ]
    picks = [_pick(budget, costs, results, right) for budget in budgets]
    chosen = [cost for cost in costs[1:] if word(cost) in {pick.best for pick in picks}]
    exits = legal([Exit(cost.drops, cost.width) for cost in chosen])
    return Found(results, picks, len(held_out), selection, exits)


def word(cost: ModelCost) -> str:
    """What users call a model: `base`, `7`, `@0.5`, `7@0.5`."""
    exit = Exit(cost.drops, cost.width)
    return "base" if exit == Exit(0) else str(exit)


def _right(models: Sequence[Model], split: Split) -> Tensor:
    """Which images each model gets right: bool (models, images)."""
    labels = split.labels.cpu()
    return torch.stack([logits.argmax(1) == labels for logits in all_logits(models, split)])


def _pick(budget: int, costs: Sequence[ModelCost], results: Sequence[Result], right: Tensor) -> Pick:
    numbers = [number for number, cost in enumerate(costs) if number and serves(cost, budget)]
    # Of equal accuracies, the one with fewer MACs comes first.
    order = sorted(numbers, key=lambda number: (-results[number].accuracy, results[number].macs))
    best, *others = order
    if not others:
        return Pick(budget, results[best].name)
    distances = right[best].double() - right[others[0]].double()
    error = (distances.std() / len(distances) ** 0.5).item()
    return Pick(budget, results[best].name, results[others[0]].name, distances.mean().item(), error)
