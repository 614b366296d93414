"""JPEGs decoded as far as a view needs them: at a smaller scale, and no further than its last row.

For a smaller scale libjpeg leaves out fine detail, and is faster. image_files.py calls this module, which
knows no paths and no messages.
"""

import math
from contextlib import suppress
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile

from cnsn_cli.data.pixels import ON_THEIR_SIDE, RIGHT_TO_LEFT, UPSIDE_DOWN, eight_bits, orientation, upright
from cnsn_cli.data.truncation import END_OF_JPEG, GREY, check_complete, opened_again, row
from cnsn_cli.data.views import Box, Size, View

JPEGS = ("JPEG", "MPO")
BLOCK = 8  # the side of a JPEG's blocks, in pixels
SPARE = 1.25  # with just the pixels that are needed, rough pictures differ by 3 of 255 from a full decode


def smaller(image: ImageFile, file: BinaryIO, view: View) -> tuple[Image.Image, Box]:
    """Decode a JPEG that was opened, at 1, 1/2, 1/4 or 1/8 of its size: at least SPARE times as `view` says.

    Returns the upright picture, and where its edges are in there: a picture of 1,001 pixels a side fills
    500.5 of 501 pixels. Rows after those that `view` needs may be black. Raises ValueError if the picture
    lacks rows.
    """
    turned = orientation(image)
    size, on_its_side = image.size, turned in ON_THEIR_SIDE
    aimed, needed = view.aim(size[::-1] if on_its_side else size)
    width, height = (math.ceil(SPARE * length) for length in aimed)
    least = (height, width) if on_its_side else (width, height)
    drafted = image.draft(None, least)
    _, (_, _, across, down) = drafted or ("", (0, 0, *size))
    end = _lower_edge(needed, turned, size) / size[1] * down
    found = eight_bits(upright(_decoded(image, file, least, math.ceil(end) + 1)))
    across, down = (down, across) if on_its_side else (across, down)
    left = found.width - across if turned in RIGHT_TO_LEFT else 0
    top = found.height - down if turned in UPSIDE_DOWN else 0
    return found, (left, top, left + across, top + down)


def _lower_edge(part: Box, turned: int, size: Size) -> float:
    """The lower edge of a part of the upright picture, in the picture of this size as it is stored."""
    left, top, right, lower = part
    if turned in ON_THEIR_SIDE:
        return size[1] - left if turned in RIGHT_TO_LEFT else right
    return size[1] - top if turned in UPSIDE_DOWN else lower


def _decoded(image: ImageFile, file: BinaryIO, least: Size, rows: int) -> ImageFile:
    """Decode the first `rows` rows if these are certain to be right, else the whole picture."""
    if rows < image.height and _ends_as_it_should(file):
        if _has_first_rows(image, rows):
            return image
        image = opened_again(image, file, least)
    image.load()
    check_complete(image, file, least)
    return image


def _ends_as_it_should(file: BinaryIO) -> bool:
    """Whether the file was not cut short. A decoder that stops early would not notice."""
    file.seek(-len(END_OF_JPEG), 2)
    return file.read() == END_OF_JPEG


def _has_first_rows(image: ImageFile, rows: int) -> bool:
    """Decode the first `rows` rows. Returns whether they are there: a last row in black or grey may not be.

    Pillow has no call for this. It decodes the rows that its list of tiles names, and then raises OSError:
    libjpeg finds that rows are left. Rows that were not decoded, for whatever reason, are black.
    """
    codec, _, offset, options = image.tile[0]
    image.tile = [(codec, (0, 0, image.width, rows), offset, options)]  # type: ignore[list-item]
    with suppress(OSError):
        image.load()
    last = row(image, rows - 1)
    ends_in_grey = (last[:, -BLOCK:] == GREY).all()  # as a row does whose data end in its middle
    return bool(last.any() and not ends_in_grey)
