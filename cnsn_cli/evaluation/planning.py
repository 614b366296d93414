"""Costs of sub-models that nobody has trained yet: every detach point at every width.

    exits   1    2    3    ...
    width 1         7    ...        `7`: without the first 7 convs
    width 0.5 @0.5  7@0.5 ...       `@0.5`: with half the channels; `7@0.5`: both

`cnsn mac --widths` calls this module. It knows no weights and no limits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.backbones.narrowing import check_blocks, narrow_backbones
from cnsn_cli.choices import StepDown
from cnsn_cli.evaluation.costs import Difference, ModelCost, check_macs, count, model_costs
from cnsn_cli.exits import Exit, read_exits
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task


class Plan(NamedTuple):
    """The models by their words, and the doubts about their costs, as `cnsn mac` tells them."""

    models: list[ModelCost]
    not_counted: tuple[str, ...]
    different: list[Difference]


def plan(
    arch: Architecture,
    widths: Sequence[float],
    exits: Iterable[int | str] | None,
    task: Task,
    step_down: StepDown = "patch",
) -> Plan:
    """The base-model, and a sub-model at each of the depths `exits` for each width; widths fall.

    `exits=None` means every detach point. Raises ArchitectureError if `arch` has no such narrow networks,
    DetachPointError for exits that are no detach points.
    """
    wide = arch.build_blank(task)
    depths = [p.drops for p in detach_points(wide, task.image_shape)] if exits is None else list(exits)
    grid = _grid(depths, widths)
    narrow = narrow_backbones(arch, wide, grid, task)
    check_blocks(arch, widths, task)
    with torch.device("meta"):
        network = Cnsn(wide, grid, task, step_down=step_down, narrow=narrow)
    words = {"base": "base", **{f"submodel{number}": str(exit) for number, exit in enumerate(grid)}}
    counted = count(network)
    costs = model_costs(network, counted)
    different = [d._replace(name=words[d.name]) for d in check_macs(network, costs)]
    return Plan([replace(cost, name=words[cost.name]) for cost in costs], counted.not_counted, different)


def _grid(depths: Iterable[int | str], widths: Sequence[float]) -> tuple[Exit, ...]:
    """Every depth at every width, and each width at full depth."""
    full = read_exits(depths)
    narrow = [
        Exit(drops, width)
        for width in sorted(widths, reverse=True)
        for drops in (0, *(exit.drops for exit in full))
    ]
    return (*full, *narrow)
