"""What a network sees of a picture: which part of it, at how many pixels, and in which colours.

`sources` and `image_files` read pictures for a view. Evaluation sees the middle; training may have views of
its own. This module knows no files and no tasks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, from_numpy

Size = tuple[int, int]  # width and height in pixels
Box = tuple[float, float, float, float]  # left, top, right and lower edge in pixels
Reader = Callable[
    ..., Image.Image
]  # (number) -> the whole picture; (number, view) -> what the view shows of it


class View(Protocol):
    """What is seen of one picture."""

    def aim(self, size: Size) -> tuple[Size, Box]:
        """Choose a part of a picture of this size.

        Returns the least size to decode the picture at, and the part of it that has to be decoded.
        """

    def cut(self, image: Image.Image, whole: Box) -> Image.Image:
        """The chosen part of the picture. `whole` says where its edges are in `image`, which is upright.

        A picture that was decoded at a smaller size may end within the last pixel of `image`.
        """


@dataclass(frozen=True)
class Middle:
    """A square in the middle, with a `share` (0..1) of the shorter side, as `side` x `side` pixels.

    The whole picture is decoded: what is evaluated shall not lack any of its rows.
    """

    side: int
    channels: int
    share: float = 1.0

    def aim(self, size: Size) -> tuple[Size, Box]:
        least = math.ceil(self.side / self.share)
        return (least, least), (0, 0, *size)

    def cut(self, image: Image.Image, whole: Box) -> Image.Image:
        left, top, right, lower = whole
        side = self.share * min(right - left, lower - top)
        left, top = left + (right - left - side) / 2, top + (lower - top - side) / 2
        return square(image, (left, top, left + side, top + side), self.side, self.channels)


def square(image: Image.Image, box: Box, side: int, channels: int) -> Image.Image:
    """A part of a picture of 8 bits as `side` x `side` pixels, in grey for one channel, else in RGB."""
    mode = "L" if channels == 1 else "RGB"
    coloured = image if image.mode == mode else image.convert(mode)
    return coloured.resize((side, side), Image.Resampling.BILINEAR, box)


def seen(view: View, image: Image.Image) -> Image.Image:
    """What `view` shows of a whole picture, which is upright and has 8 bits per channel."""
    view.aim(image.size)
    return view.cut(image, (0, 0, *image.size))


def as_tensor(image: Image.Image) -> Tensor:
    """The pixels uint8 (C, H, W) of a picture in grey or RGB."""
    import numpy as np

    pixels: Any = np.array(image)
    return from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def pixels_of(view: View, read: Reader, number: int) -> Tensor:
    """Read picture `number`; returns the pixels uint8 (C, H, W) that `view` shows."""
    return as_tensor(read(number, view))
