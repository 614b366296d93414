"""JPEGs decoded at the scale that a view needs: libjpeg leaves out fine detail, and is faster then.

image_files.py calls this module, which knows no paths and no messages.
"""

import math
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile

from cnsn_cli.data.pixels import ON_THEIR_SIDE, RIGHT_TO_LEFT, UPSIDE_DOWN, eight_bits, orientation, upright
from cnsn_cli.data.truncation import check_complete
from cnsn_cli.data.views import Box, View

JPEGS = ("JPEG", "MPO")
SPARE = 1.25  # with just the pixels that are needed, rough pictures differ by 3 of 255 from a full decode


def smaller(image: ImageFile, file: BinaryIO, view: View) -> tuple[Image.Image, Box]:
    """Decode a JPEG that was opened, at 1, 1/2, 1/4 or 1/8 of its size: at least SPARE times as `view` says.

    Returns the upright picture, and where its edges are in there: a picture of 1,001 pixels a side fills
    500.5 of 501 pixels. Raises ValueError if the picture lacks rows.
    """
    turned = orientation(image)
    size, on_its_side = image.size, turned in ON_THEIR_SIDE
    width, height = (math.ceil(SPARE * length) for length in view.aim(size[::-1] if on_its_side else size))
    least = (height, width) if on_its_side else (width, height)
    drafted = image.draft(None, least)
    image.load()
    check_complete(image, file, least)
    found = eight_bits(upright(image))
    _, (_, _, across, down) = drafted or ("", (0, 0, *size))
    across, down = (down, across) if on_its_side else (across, down)
    left = found.width - across if turned in RIGHT_TO_LEFT else 0
    top = found.height - down if turned in UPSIDE_DOWN else 0
    return found, (left, top, left + across, top + down)
