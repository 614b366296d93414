"""From pictures to pixels, and from pixels to the input of a network.

Data sets, networks, training and exports call this module. It knows no files and no networks.
"""

from functools import cache

from PIL import ExifTags, Image
from torch import Tensor, device, tensor

from cnsn_cli.data.views import Middle, as_tensor, seen
from cnsn_cli.task import Task

BATCH_SIZE = 200  # always the same, so that whole and detached files agree to the last digit
BATCH_PIXELS = BATCH_SIZE * 96**2  # larger images make smaller batches, to save memory
TURNS = {  # EXIF orientation -> what makes a picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_THEIR_SIDE = {5, 6, 7, 8}  # orientations: the stored width is the height of the upright picture
RIGHT_TO_LEFT, UPSIDE_DOWN = (
    {2, 3, 6, 7},
    {3, 4, 7, 8},
)  # the stored left and top edges are right and lower ones


def batch_size(task: Task) -> int:
    """How many images a network takes at once outside of training."""
    return min(BATCH_SIZE, BATCH_PIXELS // task.image_size**2)


def to_pixels(image: Image.Image, image_size: int, in_channels: int, crop_pct: float = 1.0) -> Tensor:
    """Turn a picture into uint8 (C, S, S): upright, grey for one channel, else RGB; cut to a centred square.

    The square has the share `crop_pct` of the shorter side. A picture that is not decoded yet is decoded as
    it is, and stays whole for its owner. Raises ValueError like `eight_bits`.
    """
    return as_tensor(seen(Middle(image_size, in_channels, crop_pct), eight_bits(upright(image))))


def upright(image: Image.Image) -> Image.Image:
    """Return a picture as its EXIF orientation says that people see it; broken EXIF data change nothing."""
    image.load()  # Pillow turns a TIFF while it reads the pixels
    # Not ImageOps.exif_transpose: it also writes the other EXIF data anew, and fails if they are broken.
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {}  # it holds the orientation: nobody shall turn the picture once more
    return turned


def orientation(image: Image.Image) -> int:
    """How a picture lies in its file, as its EXIF data say; 1, which is upright, if they are broken."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parser raises many kinds of errors
        return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture as grey or RGB with 8 bits per channel, without transparency.

    Raises ValueError if the range of its values is unknown.
    """
    import numpy as np

    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image)  # 16 bits: convert() would clip the values instead of scaling them
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError("its pixels are integers of unknown range: save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def preprocess(image: Image.Image, task: Task) -> Tensor:
    """Turn a picture into the normalised tensor (C, H, W) that a network for `task` takes."""
    pixels = to_pixels(image, task.image_size, task.in_channels, task.crop_pct)
    return normalise(pixels[None], task)[0]


def normalise(pixels: Tensor, task: Task) -> Tensor:
    """Turn uint8 (N, C, H, W) into float32: scale to 0..1, subtract the mean, divide by the deviation."""
    mean, std = _constants(task, pixels.device)
    return (pixels / 255).sub_(mean).div_(std)  # in place, because a batch may be large


@cache  # a copy to the device would make it wait; a captured step reads these tensors for ever
def _constants(task: Task, place: device) -> tuple[Tensor, Tensor]:
    return tensor(task.mean, device=place).view(-1, 1, 1), tensor(task.std, device=place).view(-1, 1, 1)
