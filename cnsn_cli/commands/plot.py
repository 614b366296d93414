"""`cnsn plot`: draws runs."""

from pathlib import Path
from typing import Annotated

import typer

from cnsn_cli.commands.options import Force, model_file
from cnsn_cli.commands.output import printable


def plot(
    runs: Annotated[list[Path], model_file("Run folders; or checkpoints, which have no curves.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; it ends in .png or .svg.")
    ],
    force: Force = False,
) -> None:
    """Draw accuracy against MACs of all models, and accuracy over the epochs."""
    from cnsn_cli.training.plot import plot as draw

    draw(runs, output, force)
    print(f"written: {printable(str(output))}")
