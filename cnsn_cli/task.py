"""The task of a network: its classes, and the images that it takes.

Data sets define a task, files record it, and networks are built for it. It holds no images.
"""

from dataclasses import dataclass
from unicodedata import normalize

LARGEST_IMAGE = 1024  # pixels a side


def class_name(text: str) -> str:
    """The one spelling of a name: systems write `é` as one character, or as `e` and an accent."""
    return normalize("NFC", text)


@dataclass(frozen=True)
class Task:
    """The names of the classes, and the format of the images.

    Images are square, with `image_size` pixels a side. They are the middle of a picture, and have the share
    `crop_pct` (0..1) of its shorter side. `mean` and `std` normalise each channel, after pixel values have
    been scaled to 0..1.
    """

    class_names: tuple[str, ...]
    image_size: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        names = tuple(map(class_name, self.class_names))
        if len(set(names)) == len(set(self.class_names)):  # an old file may tell classes apart that are one
            object.__setattr__(self, "class_names", names)

    @classmethod
    def plain(cls, classes: int = 10, image_size: int = 32, in_channels: int = 3) -> "Task":
        """A task without a data set: the classes are numbered, and pixels are not normalised."""
        names = tuple(map(str, range(classes)))
        return cls(names, image_size, in_channels, (0.0,) * in_channels, (1.0,) * in_channels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        return self.in_channels, self.image_size, self.image_size
