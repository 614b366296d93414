"""What a network sees of a picture: which part of it, at how many pixels, and in which colours.

`sources` and `image_files` read pictures for a view. Evaluation sees the middle; training may have views of
its own. This module knows no files and no tasks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image, ImageOps
from torch import Tensor, from_numpy

Size = tuple[int, int]  # width and height in pixels
Reader = Callable[
    ..., Image.Image
]  # (number) -> the whole picture; (number, view) -> what the view shows of it


class View(Protocol):
    """What is seen of one picture."""

    def aim(self, size: Size) -> Size:
        """Choose a part of a picture of this size. Returns the least size to decode the picture at."""

    def cut(self, image: Image.Image) -> Image.Image:
        """The chosen part of the picture, which is upright; it may have been decoded at a smaller size."""


@dataclass(frozen=True)
class Middle:
    """A square in the middle, with a `share` (0..1) of the shorter side, as `side` x `side` pixels."""

    side: int
    channels: int
    share: float = 1.0

    def aim(self, size: Size) -> Size:
        least = math.ceil(self.side / self.share)
        return least, least

    def cut(self, image: Image.Image) -> Image.Image:
        image = coloured(image, self.channels)
        if self.share == 1 and image.size == (self.side, self.side):
            return image
        border = (1 - self.share) / 2
        return ImageOps.fit(image, (self.side, self.side), Image.Resampling.BILINEAR, border)


def coloured(image: Image.Image, channels: int) -> Image.Image:
    """A picture of 8 bits in grey if it shall have one channel, else in RGB."""
    return image.convert("L" if channels == 1 else "RGB")


def seen(view: View, image: Image.Image) -> Image.Image:
    """What `view` shows of a whole picture, which is upright and has 8 bits per channel."""
    view.aim(image.size)
    return view.cut(image)


def as_tensor(image: Image.Image) -> Tensor:
    """The pixels uint8 (C, H, W) of a picture in grey or RGB."""
    import numpy as np

    pixels: Any = np.array(image)
    return from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def pixels_of(view: View, read: Reader, number: int) -> Tensor:
    """Read picture `number`; returns the pixels uint8 (C, H, W) that `view` shows."""
    return as_tensor(read(number, view))
