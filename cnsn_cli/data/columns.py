"""Which column of a data set has the images, and which one the classes: the named one, or the usual one.

`table` and `hub_datasets` call this module. It reads no data.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cnsn_cli.errors import DataError


class Wanted(NamedTuple):
    """What a column holds, the option that names it, and its usual names in small letters."""

    content: str
    option: str
    usual: tuple[str, ...]


IMAGE = Wanted("images", "--image-column", ("image", "path", "file", "filename", "file_name", "image_path"))
LABEL = Wanted("classes", "--label-column", ("label", "class"))


def column(
    names: Iterable[str], given: str | None, wanted: Wanted, data: str, typed: Sequence[str] = ()
) -> str:
    """The name of a column of `data`: the one `given`, the only one of a fitting type, or one that is usual.

    Raises DataError with the `names` that there are.
    """
    listed = list(names)
    if given is not None:
        if given in listed:
            return given
        raise DataError(f"{data} has no column {given!r}: choose {wanted.option} from {', '.join(listed)}")
    found = typed or [name for name in listed if name.lower() in wanted.usual]
    if len(found) == 1:
        return found[0]
    problem = f"the columns {' and '.join(found)} may" if found else "no column is known to"
    raise DataError(
        f"{data}: {problem} hold the {wanted.content}: choose {wanted.option} from {', '.join(listed)}"
    )
