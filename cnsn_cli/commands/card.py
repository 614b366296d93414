"""`cnsn card`: a description of a file for a model hub."""

from pathlib import Path
from typing import Annotated

import typer

from cnsn_cli.commands.options import Force, License, model_file
from cnsn_cli.commands.output import printable


def card(
    file: Annotated[Path, model_file("A network, or a detached model.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a folder with the file and its card, ready for upload."),
    ] = None,
    license_name: License = "unknown",
    force: Force = False,
) -> None:
    """Show the model card of a file, or write the folder that model hubs want."""
    from cnsn_cli.deploy.card import CARD, CONFIG, WEIGHTS, write_folder
    from cnsn_cli.deploy.card import card as text

    if output is None:
        print(text(file, license_name), end="")
        return
    write_folder(file, output, license_name, force)
    print(f"written: {printable(str(output))}: {WEIGHTS}, {CONFIG}, {CARD}")
