"""The command line: collects the commands, and turns an error into one line on stderr and exit code 1.

The script `cnsn` and `python -m cnsn_cli` start here. This module does not know what the commands do.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Annotated

import typer

from cnsn_cli import distributed
from cnsn_cli.commands import waiting
from cnsn_cli.commands.archs import archs
from cnsn_cli.commands.bench import bench
from cnsn_cli.commands.card import card
from cnsn_cli.commands.detach import detach
from cnsn_cli.commands.eval import evaluate
from cnsn_cli.commands.export import export
from cnsn_cli.commands.help import Command
from cnsn_cli.commands.info import info
from cnsn_cli.commands.mac import mac
from cnsn_cli.commands.output import printable, shortened
from cnsn_cli.commands.plot import plot
from cnsn_cli.commands.predict import predict
from cnsn_cli.commands.push import push
from cnsn_cli.commands.recipes import recipes
from cnsn_cli.commands.search import search
from cnsn_cli.commands.train import TrainCommand, train
from cnsn_cli.errors import CnsnError, lack
from cnsn_cli.version import __version__

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch sets the variable where the user did not

app = typer.Typer(name="cnsn", no_args_is_help=True, pretty_exceptions_enable=False)
app.command("train", cls=TrainCommand)(train)
app.command("search", cls=Command)(search)
app.command("eval", cls=Command)(evaluate)
app.command("detach", cls=Command)(detach)
app.command("export", cls=Command)(export)
app.command("predict", cls=Command)(predict)
app.command("plot", cls=Command)(plot)
app.command("bench", cls=Command)(bench)
app.command("card", cls=Command)(card)
app.command("push", cls=Command)(push)
app.command("mac", cls=Command)(mac)
app.command("archs", cls=Command)(archs)
app.command("recipes", cls=Command)(recipes)
app.command("info", cls=Command)(info)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cnsn {__version__}")
        raise typer.Exit


@app.callback()
def cnsn(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train one convolutional network, and take smaller ones out of it."""


def main() -> None:
    """The entry point of the command `cnsn`."""
    _escape_what_cannot_be_shown()
    try:
        _run()
    except SystemExit as end:
        if distributed.launched():
            distributed.end(end.code)
        raise


def _escape_what_cannot_be_shown() -> None:
    """Let both streams write characters as escapes that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run() -> None:
    try:
        with distributed.only_first_prints(), _without_empty_cache(), waiting.shown():
            app(prog_name="cnsn")
    except (CnsnError, OSError, MemoryError, RuntimeError) as error:
        text = _in_one_line(error)
        if text is None or "--traceback" in sys.argv:
            raise
        if distributed.speaks():
            print(f"cnsn: {printable(shortened(text))}", file=sys.stderr)
        sys.exit(1)


def _in_one_line(error: Exception) -> str | None:
    """What users read about an error; None if the error is a fault of the program."""
    if isinstance(error, CnsnError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return lack(error)


@contextmanager
def _without_empty_cache() -> Iterator[None]:
    """Removes the cache of torch.compile if nothing is in it: torch creates the folder on import."""
    chosen = os.environ.get(CACHE)
    try:
        yield
    finally:
        if chosen is None and CACHE in os.environ:
            with suppress(OSError):
                os.rmdir(os.environ[CACHE])
