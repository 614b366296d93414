"""Data sets: where images and labels come from, and the task that they define.

Training, evaluation, int8 and `predict` get images here. This module knows no network and no recipe.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from cnsn_cli.choices import SplitName
from cnsn_cli.data.image_files import read_image, without_decoder_warnings
from cnsn_cli.data.limit import limited
from cnsn_cli.data.origin import NAMED, RECORDED, Origin, check_recorded
from cnsn_cli.data.skipping import problem, tried
from cnsn_cli.data.sources import Source, image_source, open_source, take
from cnsn_cli.data.split import Split, from_files, in_memory
from cnsn_cli.data.views import Middle, pixels_of
from cnsn_cli.errors import DataError
from cnsn_cli.stages import counted, stage
from cnsn_cli.task import Task

DIGITS_SIZE = 32  # the 8x8 digits are enlarged to the size of CIFAR images
LARGEST_DEFAULT_SIZE = 224
MEMORY_LIMIT = 2 * 2**30  # bytes of pixels in a split; images of larger splits are read when needed
STATISTICS_IMAGES = 60_000  # larger splits: mean and deviation of this many images, at even distances
SPLIT_WORDS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class Dataset:
    """Training and test images, and their task.

    `skipped` has the reason for each image that `skip_bad` left out; `notes` are other words for the user on
    what was left out. `sized_by` names the picture that decided the image size, if one did.
    """

    train: Split
    test: Split
    task: Task
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sized_by: str | None = None


class Loaded(NamedTuple):
    """One split; `skipped` and `notes` are those of a Dataset."""

    split: Split
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


@without_decoder_warnings()
def load_dataset(
    data: str,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    in_channels: int = 3,
    skip_bad: bool = False,
    limit_images: int | None = None,
    crop_pct: float = 1.0,
    keep: bool = True,
    image_column: str | None = None,
    label_column: str | None = None,
    test_data: str | None = None,
) -> Dataset:
    """Read the training and test images of a data set, and define their task.

    Arguments:
        data: `cifar10`, `cifar100`, `digits`, an image folder with `train/` and `test/` or `val/`, a CSV
            table of images, or `hf:` and the name or the folder of a data set of Hugging Face.
        data_dir: the folder that CIFAR is read from, or else downloaded into.
        image_size: the side of images in pixels; None: the shorter side of the first image, up to 224.
        in_channels: 3 for RGB, 1 for grey.
        skip_bad: read all images first, and leave out those that cannot be read.
        limit_images: the most images of each split, at least one of each class; None: all of them.
        crop_pct: an image is the middle of a picture, with this share of its shorter side.
        keep: hold the training images in memory if they fit; else they are read whenever they are needed.
        image_column: the column of images of a table, or of Hugging Face; None: it has a usual name.
        label_column: the same for the classes.
        test_data: a table of the test images, if `data` is a table without the column `split`.

    The mean and standard deviation of the task come from the training images. Raises DataError if the data
    set is missing or incomplete, or, without `skip_bad`, if an image cannot be read.
    """
    if in_channels not in (1, 3):
        raise DataError(f"images are read with 1 or 3 channels, not {in_channels}")
    origin = Origin(data, data_dir, image_column, label_column, test_data)
    source, bad = _sound(limited(open_source(origin, "train"), limit_images, data), skip_bad)
    for number in set(range(len(source.class_names))) - set(source.labels):
        raise DataError(f"no image of class {source.class_names[number]!r} in {data} can be read")
    size, sized_by = (image_size, None) if image_size else _default_size(data, source)
    train = _split(source, Middle(size, in_channels, crop_pct), keep)
    mean, std = channel_statistics(train)
    task = Task(source.class_names, size, in_channels, mean, std, crop_pct)
    test = _read_split(origin, "test", task, skip_bad, limit_images)
    return Dataset(train, test.split, task, bad + test.skipped, source.notes + test.notes, sized_by)


@without_decoder_warnings()
def first_look(
    origin: Origin, image_size: int | None = None, in_channels: int = 3, skip_bad: bool = False
) -> Task:
    """The classes and the format of the images. Pixels are not normalised.

    One image is read at most; with `skip_bad`, those up to the first that can be read. Raises DataError.
    """
    source = open_source(origin, "train")
    if skip_bad and not image_size:
        source = _first_sound(source)
    size = image_size or _default_size(origin.data or "", source)[0]
    return Task(source.class_names, size, in_channels, (0.0,) * in_channels, (1.0,) * in_channels)


def load_test(
    data: str,
    task: Task,
    data_dir: str | Path = "data",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Split:
    """Read the test images; labels are class numbers of `task`. Raises DataError for unknown classes.

    All images of a table without the column `split` are test images. The arguments are those of
    `load_dataset`.
    """
    return _read_split(Origin(data, data_dir, image_column, label_column), "test", task).split


@without_decoder_warnings()
def _read_split(
    origin: Origin,
    split: SplitName,
    task: Task,
    skip_bad: bool = False,
    limit_images: int | None = None,
) -> Loaded:
    place = origin.place(split)
    source, bad = _sound(limited(open_source(origin, split), limit_images, place), skip_bad)
    numbers = {name: number for number, name in enumerate(task.class_names)}
    for name in source.class_names:
        if name not in numbers:
            raise DataError(
                f"class {name!r} of the {SPLIT_WORDS[split]} images in {place} is none of the "
                f"{task.num_classes} classes of the task: {_listed(task.class_names)}"
            )
    labels = [numbers[source.class_names[label]] for label in source.labels]
    images = _split_for(task, source._replace(labels=labels))
    return Loaded(images, bad, source.notes)


def load_recorded(
    split: SplitName, task: Task, recorded: Origin, given: Origin = RECORDED, skip_bad: bool = False
) -> Loaded:
    """Read a split of the data `given`, or else of the data `recorded`, which trained the models of a file.

    Raises DataError.
    """
    origin = given.or_recorded(recorded)
    if not origin.data:
        raise DataError("the file does not name its training data: give --data")
    if not given.data:
        check_recorded(origin)
    try:
        return _read_split(origin, split, task, skip_bad)
    except DataError as error:
        if given.data or origin.data in NAMED:
            raise
        raise DataError(f"{error} (trained on {origin.data}; give another place with --data)") from error


def open_images(paths: list[Path], task: Task) -> Split:
    """Read pictures that belong to no data set, in order; all labels are 0. Raises DataError."""
    source = image_source(task.class_names, [(str(path), 0) for path in paths])
    return _split_for(task, source)


def sample_train(origin: Origin, task: Task, count: int) -> Split:
    """Read `count` training images at even distances, or all if there are fewer. Raises DataError."""
    source = open_source(origin, "train")
    total = len(source.labels)
    chosen = [number * total // count for number in range(count)] if count < total else list(range(total))
    return _split_for(task, take(source, chosen))


def _sound(source: Source, skip_bad: bool) -> tuple[Source, tuple[str, ...]]:
    """With `skip_bad`, the images that can be read, and the error of each other image.

    Without it, a file that is missing ends the command now, and not after hours of training.
    """
    if not skip_bad:
        for number, path in enumerate(source.files):
            if not os.path.isfile(path):
                source.read(number)  # raises the error that names the image
        return source, ()
    with stage(f"trying {counted(len(source.labels), 'image')}"):
        sound, bad = tried(source.read, len(source.labels))
    return take(source, sound), bad


def _first_sound(source: Source) -> Source:
    """The first image that can be read; the first of all, whose error the next reader raises, if none can."""
    numbers = range(len(source.labels))
    return take(source, [next((n for n in numbers if problem(source.read, n) is None), 0)])


@without_decoder_warnings()
def readable(paths: list[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The pictures that can be read, and the reason for each other one. Raises DataError if none can."""
    sound, bad = tried(partial(_read, [str(path) for path in paths]), len(paths))
    return [paths[number] for number in sound], bad


def _read(paths: list[str], number: int) -> Image.Image:
    return read_image(paths[number])


@stage("measuring the mean and deviation of the pixels")
def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of the images, on values scaled to 0..1."""
    sample = torch.arange(len(split))[:: -(-len(split) // STATISTICS_IMAGES)]
    counts = torch.zeros(0)
    for pixels in split.batches(list(sample.split(100))):  # type: ignore[no-untyped-call]
        found = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in pixels.unbind(1)])
        counts = found.double() + (counts if len(counts) else 0)
    share = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    # A channel that never changes must not divide by 0.
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1 / 255).tolist())


def _default_size(data: str, source: Source) -> tuple[int, str | None]:
    """The image size, and the picture that decided it, with its size."""
    if data == "digits":
        return DIGITS_SIZE, None
    width, height = source.read(0).size
    picture = f"{source.files[0]} ({width} x {height} pixels)" if source.files else None
    return min(width, height, LARGEST_DEFAULT_SIZE), picture


def _split_for(task: Task, source: Source) -> Split:
    return _split(source, Middle(task.image_size, task.in_channels, task.crop_pct))


def _split(source: Source, view: Middle, keep: bool = True) -> Split:
    make = partial(pixels_of, view)
    if keep and len(source.labels) * view.channels * view.side**2 <= MEMORY_LIMIT:
        return in_memory(partial(make, source.read), source.labels)
    return from_files(source.read, make, source.labels)


def _listed(names: tuple[str, ...], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
