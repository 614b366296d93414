"""`cnsn mac`: the costs of models, before or after training."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.backbones.registry import find_typed
from cnsn_cli.choices import StepDown
from cnsn_cli.commands.mac_plan import print_plan
from cnsn_cli.commands.options import Json, MaxBytes, MaxMacs, Plugin, limits, model_file, parse_exits
from cnsn_cli.commands.output import print_doubts, print_json, print_models, print_table
from cnsn_cli.deploy.budget import Candidate, Choice, choose
from cnsn_cli.task import LARGEST_IMAGE, Task
from cnsn_cli.training.arguments import help_of

if TYPE_CHECKING:
    from cnsn_cli.evaluation.costs import Difference, LayerCost, ModelCost
    from cnsn_cli.network.model import Model
    from cnsn_cli.network.network import Cnsn


def mac(
    checkpoint: Annotated[Path | None, model_file("A network, or a detached model.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture, such as vgg16:width=0.5.")] = None,
    exits: Annotated[
        str | None,
        typer.Option(help="Sub-models, such as 2,7,@0.5; default: all detach points, named drop<k>."),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(help="Shares of the channels, such as 0.25,0.5: list narrow sub-models too."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_IMAGE, help=help_of("image_size"), show_default="32")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Number of classes.", show_default="10")
    ] = None,
    in_channels: Annotated[
        int | None, typer.Option(min=1, max=64, help="Channels of the images.", show_default="3")
    ] = None,
    step_down: Annotated[
        StepDown | None,
        typer.Option(help="The kind of step-down convs.", show_default="patch"),
    ] = None,
    max_macs: MaxMacs = None,
    max_bytes: MaxBytes = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also show every part of the network.")] = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Count MACs, operations, parameters and bytes of a network and of its sub-models.

    With limits, name the largest model that meets them: the model to detach, or with --arch where to cut.
    With --widths, name the largest of each kind: cut in depth, in width, or in both.
    """
    planned = (exits, widths, image_size, classes, in_channels, step_down)
    _check_source(checkpoint, arch, planned)
    budget = limits(max_macs, max_bytes)
    task = Task.plain(classes or 10, image_size or 32, in_channels or 3)
    if arch is not None and widths is not None:
        if layers:
            raise typer.BadParameter("--layers and --widths do not go together")
        print_plan(arch, widths, exits, task, step_down or "patch", budget, json)
        return
    from cnsn_cli.evaluation.costs import check_macs, count, layer_costs, model_costs

    if checkpoint is not None:
        network, accuracies = _loaded(checkpoint)
    else:
        network, accuracies = _planned(arch or "", exits, task, step_down or "patch")
    counted = count(network)
    costs = model_costs(network, counted)
    candidates = [Candidate(c.name, c.macs, c.bytes, a) for c, a in zip(costs, accuracies, strict=True)]
    choice = choose(candidates, budget) if budget else None
    parts = layer_costs(network, counted) if layers else None
    different = check_macs(network, costs)
    if json:
        _print_json(costs, parts, choice, counted.not_counted, different)
        return
    print_models([asdict(cost) for cost in costs], str(checkpoint or arch))
    print_doubts(counted.not_counted, different)
    _print_choice(parts, choice)


def _check_source(checkpoint: Path | None, arch: str | None, planned: Sequence[object]) -> None:
    if (checkpoint is None) == (arch is None):
        raise typer.BadParameter("give a checkpoint or --arch")
    if checkpoint is not None and any(value is not None for value in planned):
        raise typer.BadParameter(
            "--exits, --widths, --image-size, --classes, --in-channels and --step-down go with --arch: "
            "a checkpoint has its own values"
        )


def _loaded(checkpoint: Path) -> "tuple[Cnsn | Model, list[float | None]]":
    """The network in a file, and the accuracy of each of its models; None if the file does not know it."""
    from cnsn_cli.files.checkpoint import load_blank

    network, metadata, _ = load_blank(checkpoint)
    return network, [model.accuracy for model in metadata.models]


def _planned(
    arch: str, exits: str | None, task: Task, step_down: StepDown
) -> "tuple[Cnsn | Model, list[float | None]]":
    """A network that is not trained, and None for each of its models, because no accuracy is known."""
    cuts = None if exits is None else parse_exits(exits)
    from cnsn_cli.evaluation.costs import blank_network

    network = blank_network(find_typed(arch), cuts, task, step_down)
    return network, [None] * len(network.models())


def _print_json(
    costs: "list[ModelCost]",
    parts: "list[LayerCost] | None",
    choice: Choice | None,
    not_counted: Sequence[str],
    different: "list[Difference]",
) -> None:
    content: dict[str, Any] = {"models": [asdict(cost) for cost in costs], "not_counted": not_counted}
    content["differences"] = [difference._asdict() for difference in different]
    if parts is not None:
        content["layers"] = [asdict(part) for part in parts]
    print_json(content | ({"chosen": choice._asdict()} if choice else {}))


def _print_choice(parts: "list[LayerCost] | None", choice: Choice | None) -> None:
    if choice:
        print(f"chosen: {choice.reason}")
    if parts is not None:
        rows = [
            (p.name, " x ".join(map(str, p.shape)), f"{p.macs:,}", f"{p.operations:,}", f"{p.parameters:,}")
            for p in parts
        ]
        print_table(("part", "output", "MACs", "operations", "parameters"), rows)
