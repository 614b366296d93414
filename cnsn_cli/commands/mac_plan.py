"""`cnsn mac --widths`: the costs of every detach point at every width, before anything is trained.

`mac` calls this module, which does not know how costs are counted.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from cnsn_cli.backbones.registry import find_typed
from cnsn_cli.choices import StepDown
from cnsn_cli.commands.options import parse_exits, parse_widths
from cnsn_cli.commands.output import print_doubts, print_json, print_table
from cnsn_cli.deploy.budget import Budget, Candidate, Choice, choose
from cnsn_cli.errors import BudgetError
from cnsn_cli.exits import Exit
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from cnsn_cli.evaluation.costs import ModelCost

KINDS = {"depth": "cut in depth", "width": "cut in width", "both": "cut in both"}
COLUMNS = ("sub-model", "drops", "width", "MACs", "parameters", "bytes")


def print_plan(
    arch: str, widths: str, exits: str | None, task: Task, step_down: StepDown, budget: Budget, json: bool
) -> None:
    """Print the grid; with limits, also the largest sub-model of each kind that meets them."""
    shares, depths = parse_widths(widths), None if exits is None else _depths(exits)
    from cnsn_cli.evaluation.planning import plan

    models, not_counted, different = plan(find_typed(arch), shares, depths, task, step_down)
    chosen = _chosen(models, budget) if budget else {}
    if json:
        content: dict[str, Any] = {"models": [asdict(model) for model in models]}
        content |= {"not_counted": not_counted, "differences": [d._asdict() for d in different]}
        if budget:
            content["chosen"] = {kind: choice and choice.name for kind, choice in chosen.items()}
        print_json(content)
        return
    print_table(COLUMNS, [_row(model) for model in models], arch)
    print_doubts(not_counted, different)
    for kind, choice in chosen.items():
        print(f"{KINDS[kind]}: {choice.reason if choice else 'no sub-model fits'}")


def _depths(exits: str) -> tuple[int | str, ...]:
    depths = parse_exits(exits)
    for word in depths:
        if isinstance(word, str):
            raise typer.BadParameter(
                f"{word!r} has a width of its own: with --widths, --exits takes depths such as 2,7"
            )
    return depths


def _chosen(models: "list[ModelCost]", budget: Budget) -> dict[str, Choice | None]:
    """The largest sub-model of each kind that meets the limits. Raises BudgetError if none does."""
    candidates = {
        kind: [_candidate(m) for m in models if Exit(m.drops, m.width).kind == kind] for kind in KINDS
    }
    chosen: dict[str, Choice | None] = {}
    for kind, those in candidates.items():
        try:
            chosen[kind] = choose(those, budget) if those else None
        except BudgetError:
            chosen[kind] = None
    if not any(chosen.values()):
        choose([candidate for those in candidates.values() for candidate in those], budget)
    return chosen


def _candidate(model: "ModelCost") -> Candidate:
    return Candidate(model.name, model.macs, model.bytes)


def _row(cost: "ModelCost") -> tuple[str, ...]:
    return (
        cost.name, f"{cost.drops}", f"{cost.width:g}", f"{cost.macs:,}", f"{cost.parameters:,}",
        f"{cost.bytes / 2**20:,.2f} MiB",
    )  # fmt: skip
