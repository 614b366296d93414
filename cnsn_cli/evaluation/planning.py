"""Costs of sub-models that nobody has trained yet: every detach point at every width.

    exits   1    2    3    ...
    width 1         7    ...        `7`: without the first 7 convs
    width 0.5 @0.5  7@0.5 ...       `@0.5`: with half the channels; `7@0.5`: both

`cnsn mac --widths` calls this module. It knows no weights and no limits.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.narrowing import build_narrow, check_blocks, tensor_shapes
from cnsn_cli.choices import StepDown
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.evaluation.costs import (
    Difference,
    ModelCost,
    check_macs,
    count,
    cut,
    model_costs,
)
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task


class Planned(NamedTuple):
    """A sub-model that could be trained: its share of the channels, and its costs. The base has width 1."""

    width: float
    cost: ModelCost

    @property
    def kind(self) -> str:
        """What is cut: `depth`, `width`, `both`, or nothing in the base."""
        if self.width == 1:
            return "depth" if self.cost.drops else "base"
        return "both" if self.cost.drops else "width"


class Plan(NamedTuple):
    """The models, and the doubts about their costs, as `cnsn mac` tells them."""

    models: list[Planned]
    not_counted: tuple[str, ...]
    different: list[Difference]


def plan(
    arch: Architecture,
    widths: Sequence[float],
    exits: tuple[int, ...] | None,
    task: Task,
    step_down: StepDown = "patch",
) -> Plan:
    """The base-model, and a sub-model at each of `exits` for each width; widths fall.

    `exits=None` means every detach point. Raises ArchitectureError if `arch` has no such narrow networks.
    """
    wide = arch.build_blank(task)
    shapes = tensor_shapes(wide)
    planned = _counted(1.0, cut(wide, exits, task, step_down))
    check_blocks(arch, min(widths), task)
    for width in sorted(widths, reverse=True):
        narrow = _counted(width, cut(build_narrow(arch, shapes, width, task), exits, task, step_down))
        last = planned.models[-len(narrow.models)]
        if narrow.models[0].cost.parameters == last.cost.parameters:
            raise ArchitectureError(
                f"widths {last.width:g} and {width:g} give {arch.text} the same channels: leave one out"
            )
        left = sorted({*planned.not_counted, *narrow.not_counted})
        planned = Plan(planned.models + narrow.models, tuple(left), planned.different + narrow.different)
    return planned


def _counted(width: float, network: Cnsn) -> Plan:
    counted = count(network)
    costs = model_costs(network, counted)
    names = {cost.name: _name(cost.drops, width) for cost in costs}
    models = [Planned(width, replace(cost, name=names[cost.name])) for cost in costs]
    different = [d._replace(name=names[d.name]) for d in check_macs(network, costs)]
    return Plan(models, counted.not_counted, different)


def _name(drops: int, width: float) -> str:
    return f"{drops or ''}{'' if width == 1 else f'@{width:g}'}" or "base"
