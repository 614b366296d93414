"""Augmentation: random changes to training images, drawn per sample and applied to a whole batch at once.

The trainer draws an EpochPlan for each epoch. The augmentation of a sample depends on the seed, the epoch,
the number of samples and the index of the sample. It does not depend on the batch or on earlier draws, so
that a resumed run draws the same. One exception: an image is mixed with its neighbour in the batch. `photos`
changes a photo before it comes into a batch. This module does not know networks.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cnsn_cli.data.pixels import normalise
from cnsn_cli.task import Task
from cnsn_cli.training.recipe import Recipe

EPOCHS = 2**20  # what a small seed is multiplied by, so that its epochs do not reach the next seed


@dataclass(frozen=True)
class EpochPlan:
    """The order of the samples in one epoch, and the augmentation of each sample.

    `order` (N,) holds sample indices. The other tensors are indexed by sample, not by position in the order:
    `offsets` (N, 2) of the crop in pixels; `flips` (N,), whether to mirror; `holes` (N, 2) and `boxes`
    (N, 2), the centres of the squares to cut out and to paste in, as 0..1 of height and width; `shares` (N,),
    the share of the image itself when it is mixed with another one.
    """

    recipe: Recipe
    order: Tensor
    offsets: Tensor
    flips: Tensor
    holes: Tensor
    boxes: Tensor
    shares: Tensor

    def become(self, other: "EpochPlan") -> None:
        """Take over the plan of another epoch, in place."""
        for part in fields(self):
            if part.name != "recipe":  # all others are tensors
                getattr(self, part.name).copy_(getattr(other, part.name))

    def prepare(self, pixels: Tensor, labels: Tensor, indices: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """Augmented, normalised images (n, C, H, W) and their targets, from uint8 pixels (n, C, H, W).

        `labels` and `indices` (n,) belong to the samples. Targets are the labels (n,), or probabilities
        (n, classes) if the recipe mixes images.
        """
        images = normalise(self.augment(pixels, indices), task)
        if self.recipe.cutout:
            images = cut_out(images, self.holes[indices], self.recipe.cutout)
        if self.recipe.mix == "none":
            return images, labels
        classes = torch.arange(task.num_classes, device=labels.device)
        targets = (labels[:, None] == classes).to(images.dtype)  # one_hot would ask the device for the range
        if self.recipe.mix == "mixup":
            return mix_up(images, targets, self.shares[indices])
        return cut_mix(images, targets, self.shares[indices], self.boxes[indices])

    def augment(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """Crop and flip uint8 pixels (n, C, H, W) of the samples `indices` (n,)."""
        if self.recipe.pads:
            pixels = crop(pixels, self.offsets[indices], self.recipe.crop_padding)
        # Image i or its mirror image, n + i: torch.where takes five times as long for bytes on a CPU.
        both = torch.cat((pixels, pixels.flip(3)))
        samples = torch.arange(len(pixels), device=pixels.device)
        return both.index_select(0, samples + len(pixels) * self.flips[indices])


def plan_epoch(samples: int, recipe: Recipe, epoch: int, device: torch.device) -> EpochPlan:
    """Draw the plan of an epoch: a permutation of `samples`, and the augmentation of each sample."""
    generator = _generator(recipe.seed, epoch)
    order = torch.randperm(samples, generator=generator)
    offsets = torch.randint(2 * recipe.crop_padding + 1, (samples, 2), generator=generator)
    coins = torch.rand(samples, generator=generator) < 0.5
    holes, boxes = torch.rand(2, samples, 2, generator=generator)
    draw = np.random.default_rng((recipe.seed, epoch))  # torch cannot draw Beta from a given generator
    shares = torch.from_numpy(draw.beta(recipe.mix_alpha, recipe.mix_alpha, samples)).float()
    if recipe.flip == "alternating":
        # Of every two epochs, one shows an image as it is and one shows its mirror image (Jordan 2024).
        coins = (torch.rand(samples, generator=_generator(recipe.seed, 0)) < 0.5) ^ bool(epoch % 2)
    flips = coins & (recipe.flip != "none")
    drawn = (tensor.to(device) for tensor in (order, offsets, flips, holes, boxes, shares))
    return EpochPlan(recipe, *drawn)


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A generator that differs for each seed and epoch. torch reads only 32 bits of a seed."""
    if seed < 2**32 // EPOCHS:
        return torch.Generator().manual_seed(seed * EPOCHS + epoch)
    words = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return torch.Generator().manual_seed(int(words[0]))


def crop(pixels: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad images (n, C, H, W) by `padding` black pixels, and crop each to H x W at its `offsets` (n, 2)."""
    samples, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, C, 2p + 1, 2p + 1, H, W), no copy
    sample = torch.arange(samples, device=pixels.device)
    return windows[sample, :, offsets[:, 0], offsets[:, 1]]


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Set a square of each normalised image (n, C, H, W) to 0, the mean (DeVries & Taylor 2017).

    `centres` (n, 2) are 0..1 of height and width, `side` is in pixels. A square may be partly outside.
    """
    return images.masked_fill(squares(images, centres, torch.full_like(centres[:, 0], side)), 0)


def mix_up(images: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image with the image before it in the batch (Zhang et al. 2018).

    An image counts with its share (n,), the image before it with the rest; targets (n, classes) likewise.
    """
    pixels = shares.view(-1, 1, 1, 1)
    mixed = images * pixels + images.roll(1, 0) * (1 - pixels)
    return mixed, _blend(targets, shares)


def cut_mix(images: Tensor, targets: Tensor, shares: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Paste into each image a square of the image before it in the batch (Yun et al. 2019).

    The area of the square is 1 - share, less if it is partly outside; targets follow the area pasted.
    """
    inside = squares(images, centres, (1 - shares).sqrt() * images.shape[-1])
    mixed = torch.where(inside, images.roll(1, 0), images)
    return mixed, _blend(targets, 1 - inside.to(targets.dtype).mean((1, 2, 3)))


def _blend(targets: Tensor, shares: Tensor) -> Tensor:
    return targets * shares[:, None] + targets.roll(1, 0) * (1 - shares[:, None])


def squares(images: Tensor, centres: Tensor, sides: Tensor) -> Tensor:
    """Masks (n, 1, H, W) of pixels whose middle is in a square of `sides` (n,) around `centres` (n, 2)."""
    within = []
    for axis, length in enumerate(images.shape[2:]):
        middles = torch.arange(length, device=images.device) + 0.5
        centre = centres[:, axis, None] * length
        within.append((middles - centre).abs() < sides[:, None] / 2)
    rows, columns = within
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
