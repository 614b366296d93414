"""The paths that a function of `cnsn_cli` is given: one or several, as texts or as Path.

The public functions that take several files call it. This module does not look at the files.
"""

from collections.abc import Iterable
from pathlib import Path

from cnsn_cli.errors import ArgumentError
from cnsn_cli.files.hub import path_of

Paths = str | Path | Iterable[str | Path]


def listed(paths: Paths, what: str) -> list[Path]:
    """`paths` as a list; `what` names the argument. A text may be an address of the Hub.

    Raises ArgumentError if there is none, or an empty text, which would be the working folder.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given or "" in given:
        raise ArgumentError(f"{what} is empty or has an empty path: give at least one path")
    return [path_of(path) for path in given]
