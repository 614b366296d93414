"""Augmentation of photos: random changes to one picture, in the process that reads it, by torchvision's v2.

The trainer asks for the photos of an epoch. What happens to a sample follows from the seed, the epoch and the
number of the sample, and from nothing else: the number of workers and a stop change no bit. `augmentation`
changes the batches that are made of these photos. This module does not know networks.

    read: part of the picture --> square of pixels --> auto-augment --> colours --> erase --> batch
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from cnsn_cli.data.split import FileSplit, Split
from cnsn_cli.data.views import Box, Middle, Reader, Size, View, as_tensor, square
from cnsn_cli.task import Task
from cnsn_cli.training.recipe import Recipe


def changed(train: Split, recipe: Recipe, task: Task, epoch: int) -> Split:
    """The training photos as `recipe` changes them in an epoch, before they are in batches."""
    assert isinstance(train, FileSplit)  # `setup` refuses arrays, and leaves files where they are
    return train.made_by(Changed(recipe, task, epoch))


class Changed:
    """Makes the pixels of photos in one epoch: `changed(read, number)` returns uint8 (C, H, W)."""

    def __init__(self, recipe: Recipe, task: Task, epoch: int) -> None:
        self.recipe, self.task, self.epoch = recipe, task, epoch
        self.changes = list(_changes(recipe))
        mean = [round(255 * value) for value in task.mean]
        self.erase = v2.RandomErasing(recipe.erase, value=mean)

    def __call__(self, read: Reader, number: int) -> Tensor:
        with drawing(self.recipe.seed, self.epoch, number):
            image = read(number, self._view())
            for change in self.changes:
                image = change(image)
            pixels = as_tensor(image)
            return self.erase(pixels) if self.recipe.erase else pixels

    def _view(self) -> View:
        task = self.task
        if self.recipe.crop == "resized":
            return RandomPart(
                task.image_size, task.in_channels, self.recipe.crop_scale, self.recipe.crop_ratio
            )
        return Middle(task.image_size, task.in_channels, task.crop_pct)


class RandomPart:
    """A part of a picture with a random area, aspect ratio and place, as `side` x `side` pixels.

    The area is a share of the picture's, between the limits `scale`; width / height is between the limits
    `ratio` (Szegedy et al. 2015).
    """

    def __init__(
        self, side: int, channels: int, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> None:
        self.side, self.channels, self.scale, self.ratio = side, channels, scale, ratio
        self.size: Size = (0, 0)
        self.box = (0, 0, 0, 0)

    def aim(self, size: Size) -> tuple[Size, Box]:
        width, height = size
        blank = torch.empty((1, height, width), device="meta")  # torchvision asks it for its size
        top, left, rows, columns = v2.RandomResizedCrop.get_params(blank, list(self.scale), list(self.ratio))
        self.size, self.box = size, (left, top, left + columns, top + rows)
        least = math.ceil(width * self.side / columns), math.ceil(height * self.side / rows)
        across, down = columns / self.side, rows / self.side  # `cut` looks so far past the edges
        return least, (left - across, top - down, left + columns + across, top + rows + down)

    def cut(self, image: Image.Image, whole: Box) -> Image.Image:
        across, down = (whole[2] - whole[0]) / self.size[0], (whole[3] - whole[1]) / self.size[1]
        left, right = (whole[0] + edge * across for edge in self.box[::2])
        top, lower = (whole[1] + edge * down for edge in self.box[1::2])
        return square(image, (left, top, right, lower), self.side, self.channels)


def _changes(recipe: Recipe) -> Iterator[v2.Transform]:
    """The changes to a picture, in their order. They draw once for a batch, so each photo is by itself."""
    bilinear = InterpolationMode.BILINEAR
    if recipe.auto_augment == "trivial":
        yield v2.TrivialAugmentWide(interpolation=bilinear)
    if recipe.auto_augment == "rand":
        yield v2.RandAugment(interpolation=bilinear)
    if recipe.color_jitter:
        yield v2.ColorJitter(*[recipe.color_jitter] * 3)


@contextmanager
def drawing(seed: int, epoch: int, number: int) -> Iterator[None]:
    """torch draws from the seed of a sample; afterwards its random numbers go on as before."""
    (word,) = np.random.SeedSequence((seed, epoch, number)).generate_state(1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(word))  # torch.manual_seed would also seed CUDA
        yield
