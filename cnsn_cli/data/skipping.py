"""Which images can be read: what `--skip-bad` asks before anything is computed.

`datasets` calls it. This module does not know where images come from.
"""

from functools import partial

from cnsn_cli.data.split import decoders
from cnsn_cli.data.views import Reader
from cnsn_cli.errors import DataError


def tried(read: Reader, images: int) -> tuple[list[int], tuple[str, ...]]:
    """The numbers of the images that can be read, and the error of each other image."""
    with decoders() as pool:
        problems = list(pool.map(partial(problem, read), range(images)))
    sound = [number for number, problem in enumerate(problems) if problem is None]
    bad = tuple(filter(None, problems))
    if not sound:
        raise DataError(f"none of {len(bad):,} images can be read; the first: {bad[0]}")
    return sound, bad


def problem(read: Reader, number: int) -> str | None:
    """Why image `number` cannot be read; None if it can."""
    try:
        read(number)
    except DataError as error:
        return str(error)
    return None
