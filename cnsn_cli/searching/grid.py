"""The candidates of a search: the sub-models, by depth and width, that could serve a budget.

        MACs of the budget:     60 % .......... 100 %
                                 |  candidates  |
    sub-models by MACs:    o  o  o   o    o  o      o  o

`search` calls this module. It knows no weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.narrowing import narrow_backbones
from cnsn_cli.choices import StepDown
from cnsn_cli.errors import ArchitectureError, BudgetError
from cnsn_cli.evaluation.costs import ModelCost
from cnsn_cli.evaluation.latency import latencies
from cnsn_cli.evaluation.planning import plan
from cnsn_cli.exits import Exit, written
from cnsn_cli.network.memory_format import for_few_images
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

LEAST = 0.6  # share of a budget: a sub-model below it wastes what the device could do


class Grid(NamedTuple):
    """The costs of the candidates, in the legal order of exits, named by their words, such as `7@0.5`.

    `notes` say what was not searched.
    """

    candidates: list[ModelCost]
    notes: tuple[str, ...]

    @property
    def words(self) -> tuple[int | str, ...]:
        return tuple(Exit(cost.drops, cost.width).word for cost in self.candidates)


def find_candidates(
    arch: Architecture,
    task: Task,
    budgets: Sequence[int],
    widths: Sequence[float],
    step_down: StepDown,
    max_latency: float | None = None,
) -> Grid:
    """The grid points of `arch` within 60 % to 100 % of a budget. Raises BudgetError if a budget has none.

    An architecture that cannot be narrowed is searched in depth alone. With `max_latency`, in seconds for one
    image and one thread, slower candidates are left out.
    """
    notes: tuple[str, ...] = ()
    try:
        models = plan(arch, widths, None, task, step_down).models
    except ArchitectureError as error:
        if not widths:
            raise
        notes = (f"depths alone are searched: {error}",)
        models = plan(arch, (), None, task, step_down).models
    for budget in budgets:
        check_budget(budget, models)
    chosen = [model for model in models[1:] if any(serves(model, budget) for budget in budgets)]
    if max_latency is not None:
        chosen, left_out = _fast(arch, task, chosen, step_down, max_latency)
        notes += left_out
        for budget in budgets:
            if not any(serves(model, budget) for model in chosen):
                raise BudgetError(
                    f"no candidate for {budget:,} MACs takes at most {max_latency * 1e3:g} ms on this machine"
                )
    return Grid(chosen, notes)


def _fast(
    arch: Architecture, task: Task, models: list[ModelCost], step_down: StepDown, most: float
) -> tuple[list[ModelCost], tuple[str, ...]]:
    """The models that take at most so many seconds, and a note about the others. Weights do not matter."""
    exits = [Exit(model.drops, model.width) for model in models]
    wide = arch.build(task)
    narrow = narrow_backbones(arch, wide, exits, task)
    network = for_few_images(Cnsn(wide, exits, task, step_down=step_down, narrow=narrow)).eval()
    seconds = list(latencies(network.models()[1:]).values())
    fast = [model for model, each in zip(models, seconds, strict=True) if each <= most]
    slow = [model.name for model in models if model not in fast]
    note = f"candidates that take more than {most * 1e3:g} ms: {', '.join(slow)}"
    return fast, (note,) if slow else ()


def serves(model: ModelCost, budget: int) -> bool:
    """Whether a model takes 60 % to 100 % of a budget of MACs."""
    return LEAST * budget <= model.macs <= budget


def check_budget(budget: int, models: Sequence[ModelCost]) -> None:
    """Raises BudgetError unless a sub-model serves the budget. The first of `models` is the base-model."""
    base, *others = models
    if not others:
        raise BudgetError(f"{base.name} has no sub-models to search")
    smallest = min(others, key=lambda model: model.macs)
    span = (
        f"the smallest sub-model, {smallest.name}, takes {smallest.macs:,}, and the base-model {base.macs:,}"
    )
    if budget < smallest.macs or budget > base.macs:
        side = (
            "fewer than any sub-model needs" if budget < smallest.macs else "more than the base-model needs"
        )
        raise BudgetError(f"{budget:,} MACs are {side}: {span}")
    if not any(serves(model, budget) for model in others):
        near = sorted(others, key=lambda model: abs(model.macs - budget))[:2]
        raise BudgetError(
            f"no sub-model takes {LEAST:.0%} to 100% of {budget:,} MACs: the nearest are "
            + " and ".join(f"{model.name} with {model.macs:,}" for model in near)
        )


def legal(words: Sequence[Exit]) -> str:
    """The exits as `cnsn train --exits` takes them: widths fall, and depths ascend within a width."""
    return written(sorted(set(words), key=lambda exit: (-exit.width, exit.drops)))
