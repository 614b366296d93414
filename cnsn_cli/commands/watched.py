"""Shows a run while it trains, and says how to go on with a run that was stopped.

`cnsn train` and `cnsn search` use this module. It does not know how a run is started.
"""

import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cnsn_cli import distributed
from cnsn_cli.commands.output import printable
from cnsn_cli.errors import ProcessError, TrainingError, lack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnsn_cli.training.recipe import Recipe
    from cnsn_cli.training.run import Watch


@contextmanager
def watched(folder: Path, recipe: "Recipe", command: str = "train") -> "Iterator[Watch]":
    """Shows progress on stderr. If a signal or a lost process stops the run, says how to resume it."""
    from cnsn_cli.commands.progress import progress
    from cnsn_cli.training.signals import Stopped

    try:
        with progress(recipe) as watch:
            yield watch
    except ProcessError as error:
        raise ProcessError(f"{error}{_to_go_on(folder, command)}") from error
    except (MemoryError, RuntimeError) as error:
        if reason := lack(error):
            raise TrainingError(f"{reason}{_to_go_on(folder, command)}") from error
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        if text := _to_go_on(folder, command):
            print(f"stopped{text}", file=sys.stderr)
        if isinstance(stop, Stopped):
            raise typer.Exit(128 + stop.number) from stop
        raise


def _to_go_on(folder: Path, command: str) -> str:
    """The command that resumes the run in `folder`; empty if there is no state yet."""
    from cnsn_cli.training.run_folder import STATE

    if not (folder / STATE).exists():
        return ""
    program = "torchrun, as before, with -m cnsn_cli" if distributed.launched() else "cnsn"
    return f"; to go on: {program} {command} --resume {shlex.quote(printable(str(folder)))}"
