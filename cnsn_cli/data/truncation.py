"""Pictures that lack some of their rows, although Pillow decodes them without an error.

Pillow refuses files that are cut short. It takes files that end properly and too early, as a tool leaves them
that was stopped or that repaired a file: the other rows are then black or grey. image_files.py calls
`check_complete` for each picture, so a picture that looks whole must cost next to nothing here.
"""

import io
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

LACKS_ROWS = "it lacks some of its rows: copy or save it again"
GREY = 128  # what libjpeg makes of missing blocks
NOISE = b"\x5a" * 64
END_OF_JPEG = b"\xff\xd9"


def check_tiles(image: ImageFile) -> None:
    """Raise ValueError if the parts that a file lists do not cover the picture, before it is decoded."""
    parts = {tile[1] for tile in image.tile if tile[1]}
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in parts)
    if parts and covered < image.width * image.height:
        raise ValueError(LACKS_ROWS)


def check_complete(image: ImageFile, file: BinaryIO, least: tuple[int, int] | None = None) -> None:
    """Raise ValueError if `file`, from which `image` was decoded, has not all of its rows.

    `least` is the size that Pillow's `draft` was called with, if it was.
    """
    last = row(image, image.height - 1)
    if image.format == "PNG" and (image.info.get("interlace") or not last.any()):
        complete = _same(image, file, least, prefilled=True)
    elif image.format in ("JPEG", "MPO") and (last == GREY).all():
        complete = _same(image, _noisy(file), least)
    else:
        return
    if not complete:
        raise ValueError(LACKS_ROWS)


def row(image: Image.Image, number: int) -> "np.ndarray[Any, Any]":
    """The pixels of one row of a picture that is decoded: (1, width) or (1, width, channels)."""
    return np.asarray(image.crop((0, number, image.width, number + 1)))


def opened_again(image: ImageFile, file: BinaryIO, least: tuple[int, int] | None) -> ImageFile:
    """`image`, opened once more from `file` and not decoded yet; `least` is that of `check_complete`."""
    file.seek(0)
    again = Image.open(file, formats=[image.format or ""])
    again.draft(None, least)
    return again


def _same(image: ImageFile, file: BinaryIO, least: tuple[int, int] | None, prefilled: bool = False) -> bool:
    """Whether `file` decodes to `image`; if `prefilled`, into an image whose bits are 1 before."""
    with opened_again(image, file, least) as again:
        if prefilled:
            blank = Image.new(again.mode, (again.width, 1)).tobytes()
            again.im = Image.frombytes(again.mode, again.size, b"\xff" * (len(blank) * again.height)).im
        again.load()
        return np.array_equal(np.asarray(again), np.asarray(image))


def _noisy(file: BinaryIO) -> BinaryIO:
    """The JPEG with noise before its end: a decoder that has all rows ignores it."""
    file.seek(0)
    data = file.read()
    end = data.rfind(END_OF_JPEG)
    return io.BytesIO(data[:end] + NOISE + data[end:])
