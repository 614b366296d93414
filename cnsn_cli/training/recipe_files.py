"""The TOML files of recipes: those that come with cnsn, and the user's own, which may extend others.

`recipe` checks the settings that this module reads. It does not import pydantic, so that a help text can show
the settings, and does not know which settings there are.
"""

import codecs
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

from cnsn_cli.errors import RecipeError

PRESETS_FOLDER = Path(__file__).parent / "recipes"
OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is the start of this one
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def presets() -> list[str]:
    """The names of the recipes that come with cnsn."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def read_settings(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe, and the settings of the recipe that it extends where it has none.

    `name` is a preset or the path of a TOML file; `seen` are the recipes that extend it. Raises RecipeError.
    """
    if name in seen:
        raise RecipeError(f"recipes extend each other in a circle: {' -> '.join((*seen, name))}")
    path = _path(name)
    try:
        settings = tomllib.loads(_decoded(path.read_bytes()))
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe {name!r}: choose {', '.join(presets())} or a TOML file") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, no path
        raise RecipeError(f"cannot read recipe {name!r}: {error}") from error
    parent = settings.pop("extends", None)
    if parent is None:
        return settings
    if not isinstance(parent, str):
        raise RecipeError(f"recipe {name!r}: extends takes the name of one recipe, not {parent!r}")
    sibling = path.parent / parent
    inherited = read_settings(str(sibling) if sibling.is_file() else parent, (*seen, name))
    if "weight_decay" in settings:
        inherited.pop("baseline_weight_decay", None)
    return {**inherited, **settings}


def description(name: str) -> str:
    """What a recipe is for: the comment at the start of its file, in one line."""
    lines = takewhile(lambda line: line.startswith("#"), _decoded(_path(name).read_bytes()).splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def _path(name: str) -> Path:
    return PRESETS_FOLDER / f"{name}.toml" if name in presets() else Path(name)


def _decoded(data: bytes) -> str:
    """The text of UTF-8, with or without a byte order mark. Raises ValueError for other encodings."""
    encoding = next((name for mark, name in OTHER_MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        encoding = "UTF-16 or UTF-32 without a byte order mark, or no text"
    if encoding:
        raise ValueError(f"it is {encoding}: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where = f"byte 0x{data[error.start]:02x} in line {line}"
        raise ValueError(
            f"{where} is not UTF-8, perhaps Latin-1 or Windows-1252: save it as UTF-8"
        ) from error
