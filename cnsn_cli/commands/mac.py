"""`cnsn mac`: what models cost, before or after training."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cnsn_cli.backbones.registry import find_typed
from cnsn_cli.commands.options import SIDE, Json, MaxBytes, MaxMacs, Plugin, limits, parse_exits
from cnsn_cli.commands.output import print_json, print_models, print_table
from cnsn_cli.deploy.budget import Candidate, choose
from cnsn_cli.task import LARGEST_IMAGE, Task

if TYPE_CHECKING:
    from cnsn_cli.network.model import Model
    from cnsn_cli.network.network import Cnsn


def mac(
    checkpoint: Annotated[Path | None, typer.Argument(help="A network, or a detached model.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture, such as vgg16:width=0.5.")] = None,
    exits: Annotated[
        str | None, typer.Option(help="Detach points such as 2,7; default: all of them, as drop<k>.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_IMAGE, help=SIDE, show_default="32")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Number of classes.", show_default="10")
    ] = None,
    in_channels: Annotated[
        int | None, typer.Option(min=1, max=64, help="Channels of the images.", show_default="3")
    ] = None,
    step_down: Annotated[
        Literal["patch", "stem"] | None,
        typer.Option(help="What step-down convs are made of.", show_default="patch"),
    ] = None,
    max_macs: MaxMacs = None,
    max_bytes: MaxBytes = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every part of the network too.")] = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Count MACs, operations, parameters and bytes of a network and of its sub-models.

    With limits, tell which model to take, or for --arch where to cut: the largest that keeps them.
    """
    if (checkpoint is None) == (arch is None):
        raise typer.BadParameter("give a checkpoint or --arch")
    if checkpoint is not None and (exits, image_size, classes, in_channels, step_down) != (None,) * 5:
        raise typer.BadParameter(
            "--exits, --image-size, --classes, --in-channels and --step-down go with --arch: "
            "a checkpoint knows its own"
        )
    budget = limits(max_macs, max_bytes)
    cuts = None if exits is None else parse_exits(exits)
    from cnsn_cli.evaluation.costs import blank_network, layer_costs, model_costs
    from cnsn_cli.files.checkpoint import load_blank

    if arch is not None:
        task = Task.plain(classes or 10, image_size or 32, in_channels or 3)
        network: Cnsn | Model = blank_network(find_typed(arch), cuts, task, step_down or "patch")
        accuracies: list[float | None] = [None] * len(network.models())
    else:
        network, metadata, _ = load_blank(checkpoint or Path())
        accuracies = [model.accuracy for model in metadata.models]
    costs = model_costs(network)
    candidates = [Candidate(c.name, c.macs, c.bytes, a) for c, a in zip(costs, accuracies, strict=True)]
    choice = choose(candidates, budget) if budget else None
    parts = layer_costs(network) if layers else []
    if json:
        content: dict[str, Any] = {"models": [asdict(cost) for cost in costs]}
        if layers:
            content["layers"] = [asdict(part) for part in parts]
        print_json(content | ({"chosen": choice._asdict()} if choice else {}))
        return
    print_models([asdict(cost) for cost in costs], str(checkpoint or arch))
    if choice:
        print(f"chosen: {choice.reason}")
    if layers:
        rows = [
            (p.name, " x ".join(map(str, p.shape)), f"{p.macs:,}", f"{p.operations:,}", f"{p.parameters:,}")
            for p in parts
        ]
        print_table(("part", "output", "MACs", "operations", "parameters"), rows)
