"""Options that several commands share."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cnsn_cli.backbones.plugins import use_plugin
from cnsn_cli.deploy.budget import Budget, Quantity
from cnsn_cli.task import LARGEST_IMAGE
from cnsn_cli.training.arguments import help_of


def parse_exits(text: str) -> tuple[int, ...]:
    """`2,7` to (2, 7); the empty string to ()."""
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 2,7") from None


def parse_counts(text: str) -> tuple[int, ...]:
    """`1,32` to (1, 32); every number is at least 1."""
    counts = parse_exits(text)
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"{text!r} is no list of numbers from 1, such as 1,32")
    return counts


def parse_amount(text: str, factors: Mapping[str, float], example: str) -> float:
    """`150M` to 150,000,000, with the factor of each unit in small letters; no unit stands for 1."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    try:
        amount = float(number) * factors[text[len(number) :].lower()]
    except (ValueError, KeyError):
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise typer.BadParameter(f"{text!r} is no amount such as {example}")
    return amount


def limits(
    max_macs: str | None = None,
    max_bytes: str | None = None,
    max_latency: str | None = None,
    min_accuracy: float | None = None,
) -> Budget:
    """What a model must keep to, as typed."""
    counts = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
    seconds = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
    budget: dict[Quantity, float] = {}
    if max_macs is not None:
        budget["macs"] = round(parse_amount(max_macs, counts, "150M or 0.15G"))
    if max_bytes is not None:
        budget["bytes"] = round(parse_amount(max_bytes, counts, "8M or 500K"))
    if max_latency is not None:
        budget["latency"] = parse_amount(max_latency, seconds, "5ms or 0.005s")
    if min_accuracy is not None:
        budget["accuracy"] = min_accuracy
    return budget


def _use(plugins: list[str] | None) -> list[str] | None:
    for plugin in plugins or ():
        use_plugin(plugin)
    return plugins


# It has done its work when a command starts.
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        help="Code that builds networks: a file.py, which is run, or package.module:function.",
        callback=_use,
        show_default=False,
    ),
]
MaxMacs = Annotated[str | None, typer.Option(help="At most so many MACs, such as 150M.")]
MaxBytes = Annotated[
    str | None, typer.Option(help="At most so many bytes of float32 tensors: 8M is 8,000,000.")
]
Data = Annotated[
    str | None,
    typer.Option(help="cifar10, cifar100, digits or a folder; default: what it was trained on."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help=help_of("force"))]
Submodel = Annotated[
    str | None, typer.Option(help="Of a network: a number such as 1, or base.", show_default="base")
]
DataDir = Annotated[Path, typer.Option(help=help_of("data_dir"))]
Device = Annotated[str, typer.Option(help=help_of("device"))]
Recalibrate = Annotated[
    int,
    typer.Option(
        min=0,
        help="Compute BN statistics anew, from so many batches of 200 training images.",
        show_default=False,
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help=help_of("skip_bad"))]
ImageSize = Annotated[int | None, typer.Option(min=1, max=LARGEST_IMAGE, help=help_of("image_size"))]
