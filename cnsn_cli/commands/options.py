"""Options that several commands share, and functions that parse their texts.

This module does not know what the commands do with the values.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cnsn_cli.backbones.plugins import use_plugin
from cnsn_cli.deploy.budget import Budget, Quantity
from cnsn_cli.errors import DetachPointError
from cnsn_cli.exits import Exit, read_exit
from cnsn_cli.files.hub import path_of
from cnsn_cli.task import LARGEST_IMAGE
from cnsn_cli.training.arguments import help_of

COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}  # factors of the units of MACs


def parse_exits(text: str) -> tuple[int | str, ...]:
    """Parse `2,7,@0.5` to (2, 7, "@0.5"), and the empty string to ()."""
    return tuple(parse_exit(word).word for word in text.split(",")) if text.strip() else ()


def parse_exit(word: str) -> Exit:
    """Parse `7`, `@0.5` or `7@0.5`."""
    try:
        return read_exit(word)
    except DetachPointError as error:
        raise typer.BadParameter(str(error)) from None


def parse_counts(text: str) -> tuple[int, ...]:
    """Parse `1,32` to (1, 32); every number must be at least 1."""
    try:
        counts = tuple(map(int, text.split(",")))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers of at least 1, such as 1,32")
    return counts


def parse_widths(text: str) -> tuple[float, ...]:
    """Parse `0.25,0.5` to (0.25, 0.5): different shares of the channels, between 0 and 1."""
    try:
        widths = tuple(float(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or len(set(widths)) < len(widths) or not all(0 < width < 1 for width in widths):
        raise typer.BadParameter(
            f"{text!r} is not a list of different shares of the channels between 0 and 1, such as 0.25,0.5"
        )
    return widths


def parse_budgets(text: str) -> tuple[int, ...]:
    """Parse `150M,80M` to (150000000, 80000000): numbers of MACs, in the order that the user gave."""
    budgets = [round(parse_amount(part.strip(), COUNTS, "150M or 0.15G")) for part in text.split(",")]
    return tuple(dict.fromkeys(budgets))


def parse_amount(text: str, factors: Mapping[str, float], example: str) -> float:
    """Parse `150M` to 150,000,000. `factors` has the factor of each unit in small letters; "" is no unit."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    try:
        amount = float(number) * factors[text[len(number) :].lower()]
    except (ValueError, KeyError):
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise typer.BadParameter(f"{text!r} is not an amount such as {example}")
    return amount


def limits(
    max_macs: str | None = None,
    max_bytes: str | None = None,
    max_latency: str | None = None,
    min_accuracy: float | None = None,
) -> Budget:
    """The limits that a model must meet, from the texts that the user typed; None is no limit."""
    seconds = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
    budget: dict[Quantity, float] = {}
    if max_macs is not None:
        budget["macs"] = round(parse_amount(max_macs, COUNTS, "150M or 0.15G"))
    if max_bytes is not None:
        budget["bytes"] = round(parse_amount(max_bytes, COUNTS, "8M or 500K"))
    if max_latency is not None:
        budget["latency"] = parse_amount(max_latency, seconds, "5ms or 0.005s")
    if min_accuracy is not None:
        budget["accuracy"] = min_accuracy
    return budget


def given(context: typer.Context) -> set[str]:
    """The names of the options that the user gave."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def refuse(names: set[str], mode: str) -> None:
    """Raises BadParameter if there are options `names`, which do not go with the option `mode`."""
    if names:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))
        raise typer.BadParameter(f"{mode} cannot be combined with {options}")


def model_file(kinds: str) -> Any:
    """An argument that names a file of one of these `kinds`, here or on the Hub."""
    return typer.Argument(help=f"{kinds} Also hf://user/repo/file.", parser=path_of, show_default=False)


def _use(plugins: list[str] | None) -> list[str] | None:
    for plugin in plugins or ():
        use_plugin(plugin)
    return plugins


# The callback uses the plug-ins before the command starts, so that commands can ignore this parameter.
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        help="Code that builds networks: a file.py, which is executed, or package.module:function.",
        callback=_use,
        show_default=False,
    ),
]
MaxMacs = Annotated[str | None, typer.Option(help="Limit: MACs for one image, such as 150M.")]
MaxBytes = Annotated[
    str | None, typer.Option(help="Limit: bytes of float32 tensors, such as 8M, which is 8,000,000.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="cifar10, cifar100, digits, a folder, a table.csv or hf:NAME-OR-FOLDER; default: the data of "
        "the training."
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help=help_of("image_column"))]
LabelColumn = Annotated[str | None, typer.Option(help=help_of("label_column"))]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help=help_of("force"))]
License = Annotated[str, typer.Option("--license", help="The license as hubs spell it, such as apache-2.0.")]
Submodel = Annotated[
    str | None, typer.Option(help="A model of a network: a number such as 1, or base.", show_default="base")
]
DataDir = Annotated[Path, typer.Option(help=help_of("data_dir"))]
Device = Annotated[str, typer.Option(help=help_of("device"))]
Recalibrate = Annotated[
    int,
    typer.Option(
        min=0,
        help="Recompute BN statistics from this many batches of 200 training images.",
        show_default=False,
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help=help_of("skip_bad"))]
ImageSize = Annotated[int | None, typer.Option(min=1, max=LARGEST_IMAGE, help=help_of("image_size"))]
