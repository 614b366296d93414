"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from cnsn_cli.task import LARGEST_IMAGE


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


Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists.")]
Submodel = Annotated[
    str | None, typer.Option(help="Of a network: a number such as 1, or base.", show_default="base")
]
DataDir = Annotated[Path, typer.Option(help="Where CIFAR lies, or is downloaded to.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
SIDE = "Side of the images in pixels."
ImageSize = Annotated[int | None, typer.Option(min=1, max=LARGEST_IMAGE, help=SIDE)]
InChannels = Annotated[int, typer.Option(min=1, max=64, help="Channels of the images: 3, or 1 for grey.")]
