"""`cnsn push`: puts a file and its model card on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from cnsn_cli.commands.options import License, Plugin, model_file
from cnsn_cli.commands.output import printable


def push(
    file: Annotated[Path, model_file("A network, or a detached model.")],
    repo: Annotated[str, typer.Argument(help="The repository, user/repo; it is created if there is none.")],
    license_name: License = "unknown",
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository; a public one is refused.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file and the card that the repository has.")
    ] = False,
    plugin: Plugin = None,
) -> None:
    """Put a file and its model card on the Hub, and show the address that others use.

    This needs a token: `hf auth login` keeps one, or HF_TOKEN holds it. A file that cnsn cannot read is not
    uploaded.
    """
    from cnsn_cli.deploy.push import push as upload

    pushed = upload(file, repo, license_name, private, force)
    print(f"pushed: {printable(pushed.address)}")
    if not pushed.with_card:
        print("kept: README.md of the repository; --force replaces it with the card of this file")
