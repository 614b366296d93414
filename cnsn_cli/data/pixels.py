"""From pictures to pixels, from pixels to what a network takes."""

from functools import lru_cache

from PIL import Image, ImageOps
from torch import Tensor, device, from_numpy, tensor

from cnsn_cli.task import Task

BATCH_SIZE = 200  # one for all, so that whole and detached files agree to the last digit
BATCH_PIXELS = BATCH_SIZE * 96**2  # fewer of images that are larger, which must not take gigabytes


def batch_size(task: Task) -> int:
    """How many images a network takes at once where it does not learn."""
    return min(BATCH_SIZE, BATCH_PIXELS // task.image_size**2)


def to_pixels(image: Image.Image, image_size: int, in_channels: int) -> Tensor:
    """A picture to uint8 (C, S, S): grey for one channel, else RGB; cut to a square around its middle."""
    import numpy as np

    image = eight_bits(image).convert("L" if in_channels == 1 else "RGB")
    if image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.array(image).reshape(image_size, image_size, in_channels)
    return from_numpy(pixels).permute(2, 0, 1)


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture as grey or RGB with 8 bits a channel; transparency is dropped.

    Raises ValueError where the range of its values is not known.
    """
    import numpy as np

    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image)  # 16 bits, which convert() would clip instead of scaling them
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError("its pixels are integers of unknown range: save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def preprocess(image: Image.Image, task: Task) -> Tensor:
    """A picture to the normalised tensor (C, H, W) that a network for `task` takes."""
    return normalise(to_pixels(image, task.image_size, task.in_channels)[None], task)[0]


def normalise(pixels: Tensor, task: Task) -> Tensor:
    """uint8 (N, C, H, W) to float32: scaled to 0..1, minus the mean, divided by the standard deviation."""
    mean, std = _constants(task, pixels.device)
    return (pixels / 255).sub_(mean).div_(std)  # in place, for a batch may be large


@lru_cache(maxsize=8)  # a copy to the device for every batch would make the device wait
def _constants(task: Task, place: device) -> tuple[Tensor, Tensor]:
    return tensor(task.mean, device=place).view(-1, 1, 1), tensor(task.std, device=place).view(-1, 1, 1)
