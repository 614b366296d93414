"""Image files: how an untrusted picture is read.

datasets.py and `predict` call this module. It knows no data set and no task.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from cnsn_cli.data.jpeg import JPEGS, smaller
from cnsn_cli.data.pixels import eight_bits, upright
from cnsn_cli.data.truncation import check_complete, check_tiles
from cnsn_cli.data.views import Box, View
from cnsn_cli.errors import DataError, one_line

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for PostScript, Pillow would run Ghostscript
MOST_PIXELS = 64_000_000  # 8,000 x 8,000; decoded, they take 256 MB
LONGEST_SIDE = 65_535  # as in a JPEG; each row takes memory beside its pixels


def read_image(path: str, view: View | None = None, encoded: bytes | None = None) -> Image.Image:
    """Read a picture, upright and with 8 bits per channel, or what `view` shows of it.

    `encoded` are the bytes of a picture that is in no file of its own; `path` is then its name in errors.
    For a view, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if these are pixels enough. Raises DataError,
    which names the file.
    """
    image, whole = _readable(path, view, encoded)
    return image if view is None else _cut(image, whole, view, path)


def _readable(path: str, view: View | None, encoded: bytes | None) -> tuple[Image.Image, Box]:
    try:
        return _decoded(path, view, encoded)
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is higher
        raise DataError(f"cannot read image {path}: it has more than {MOST_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise DataError(f"cannot read image {path}: it is not a valid {', '.join(FORMATS)} file") from error
    except MemoryError as error:
        with _opened(path, encoded) as file, Image.open(file, formats=FORMATS) as image:
            raise DataError(f"cannot read image {path}: {_too_large(image)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"cannot read image {path}: {error or type(error).__name__}") from error


def _cut(image: Image.Image, whole: Box, view: View, path: str) -> Image.Image:
    try:
        return view.cut(image, whole)
    except Exception as error:  # Pillow raises many kinds
        reason = _too_large(image) if isinstance(error, MemoryError) else one_line(error)
        raise DataError(f"cannot resize image {path}: {reason}") from error


def _too_large(image: Image.Image) -> str:
    return (
        f"its {image.width:,} x {image.height:,} pixels do not fit into memory: shrink it, or close other "
        "programs"
    )


def _decoded(path: str, view: View | None, encoded: bytes | None) -> tuple[Image.Image, Box]:
    """The upright picture, and where its edges are. `view` has chosen its part when this returns."""
    with _opened(path, encoded) as file, Image.open(file, formats=FORMATS) as image:
        _check_size(image.width, image.height)
        check_tiles(image)
        if view and image.format in JPEGS:
            return smaller(image, file, view)
        image.load()
        check_complete(image, file)
        found = eight_bits(upright(image))
    if view:
        view.aim(found.size)
    return found, (0, 0, *found.size)


def _opened(path: str, encoded: bytes | None) -> BinaryIO:
    if encoded is None and not os.path.isfile(path):  # a pipe would wait forever
        raise ValueError("it is no ordinary file" if os.path.lexists(path) else "there is no such file")
    if (os.path.getsize(path) if encoded is None else len(encoded)) == 0:
        raise ValueError("it is empty")
    # Pillow gets no path: it would map some TIFFs into memory, and garble those that lie on their side.
    return open(path, "rb") if encoded is None else io.BytesIO(encoded)


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"its {width:,} x {height:,} pixels are more than {MOST_PIXELS:,}: shrink it")
    if max(width, height) > LONGEST_SIDE:
        raise ValueError(
            f"its {width:,} x {height:,} pixels have a side of more than {LONGEST_SIDE:,}: cut it into pieces"
        )


@contextmanager
def without_decoder_warnings() -> Iterator[None]:
    """Hide Pillow's warnings from the user: they name no file, and real problems raise errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
