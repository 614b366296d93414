"""What `cnsn train` asks of a new run: the words of the user, and what stands for those that are missing.

`train` calls this module, which does not know how a run is started.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from cnsn_cli.backbones import registry
from cnsn_cli.commands.options import parse_exit
from cnsn_cli.data.origin import check_recorded, is_table
from cnsn_cli.errors import DataError
from cnsn_cli.files.hub import path_of

if TYPE_CHECKING:
    from cnsn_cli.backbones.architecture import Architecture
    from cnsn_cli.files.metadata import Metadata
    from cnsn_cli.training.recipe import Recipe

LONGEST_NAME = 50  # characters of a run folder's name before its time; at most 255 bytes in all
DATA = "cifar10"  # without --data


class Asked(NamedTuple):
    """The arguments of `cnsn_cli.train`: five that have a position, and `options` by name."""

    arch: "Architecture"
    exits: tuple[int | str, ...]
    data: str
    recipe: "Recipe"
    out: Path
    options: dict[str, Any]


def asked_of(
    arch: "Architecture | None",
    exits: tuple[int | str, ...] | None,
    data: str | None,
    recipe: str,
    out: Path | None,
    options: dict[str, Any],
    overrides: dict[str, Any],
) -> Asked:
    """What the user asks of a new run. Raises BadParameter if words are missing."""
    drop, freeze_base = options["drop"], options["freeze_base"]
    shortened = drop is not None and parse_exit(drop).drops > 0
    if drop is not None and freeze_base is not None:
        raise typer.BadParameter("--drop trains a sub-model alone: there is no base-model to freeze")
    if freeze_base is not None:
        known = _metadata(path_of(freeze_base))
        arch = arch or registry.find(known.arch, known.provider)
        if data is None:
            data, options = _data_of(path_of(freeze_base), known, options)
    data = DATA if data is None else data
    if arch is None or (exits is None) == (drop is None):
        raise typer.BadParameter("give --arch and --exits, --arch and --drop, or --resume")
    from cnsn_cli.training.recipe import load_recipe

    chosen = load_recipe(recipe, overrides, baseline=not exits and not shortened)
    return Asked(arch, exits or (), data, chosen, out or default_folder(arch.text, data), options)


def _metadata(checkpoint: Path) -> "Metadata":
    from cnsn_cli.files.metadata import read_metadata
    from cnsn_cli.files.tensor_file import read_header

    return read_metadata(checkpoint, read_header(checkpoint))


def _data_of(checkpoint: Path, metadata: "Metadata", options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The data that a network was trained on, and `options` with their columns.

    Raises DataError if the data are unknown, or not in their place.
    """
    origin = metadata.origin
    if origin.data is None:
        raise DataError(f"{checkpoint} does not name its training data: give --data")
    check_recorded(origin)
    if not origin.is_here():
        kind = "file" if is_table(origin.data) else "folder"
        raise DataError(
            f"{checkpoint} was trained on {origin.data}, and there is no such {kind}: give --data"
        )
    columns = {name: options[name] or column for name, column in origin.columns().items()}
    return origin.data, {**options, **columns}


def default_folder(arch: str, data: str) -> Path:
    """The folder runs/<arch>-<data>-<time>."""
    name = re.sub(r"[^\w.=]+", "-", f"{arch}-{Path(data).name}")
    return Path("runs") / f"{name[:LONGEST_NAME]}-{datetime.now():%Y%m%d-%H%M%S}"
