"""The paths that a function of `cnsn_cli` is given: one or several, as texts or as Path.

The public functions that take several files call it. This module does not look at the files.
"""

from collections.abc import Iterable
from pathlib import Path

from cnsn_cli.errors import ArgumentError
from cnsn_cli.files.hub import path_of

Paths = str | Path | Iterable[str | Path]


def listed(paths: Paths, what: str) -> list[Path]:
    """`paths` as a list. Raises ArgumentError if there is none; `what` names the argument."""
    given = [paths] if isinstance(paths, str | Path) else paths
    found = [path_of(path) for path in given]
    if not found:
        raise ArgumentError(f"{what} is empty: give at least one path")
    return found
