"""Augmentation, drawn per sample and applied to a whole batch at once.

What a sample gets depends on the seed, the epoch, and its place in a data set of that many samples: not on
its batch, nor on what was drawn before. Only its partner for mixing is its neighbour in the batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cnsn_cli.data.pixels import normalise
from cnsn_cli.task import Task
from cnsn_cli.training.recipe import Recipe


@dataclass(frozen=True)
class EpochPlan:
    """The order of the samples in one epoch, and what each of them gets.

    `order` (N,) are sample indices; all else belongs to samples, not to positions: `offsets` (N, 2) of the
    crop, `flips` (N,), the centres of what is cut out (N, 2) and of what is pasted in (N, 2), both 0..1, and
    the `shares` (N,) of an image in its mixture.
    """

    recipe: Recipe
    order: Tensor
    offsets: Tensor
    flips: Tensor
    holes: Tensor
    boxes: Tensor
    shares: Tensor

    def prepare(self, pixels: Tensor, labels: Tensor, indices: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """What is trained on: normalised images (n, C, H, W), and targets, from uint8 (n, C, H, W).

        Targets are labels (n,), or probabilities (n, classes) where images are mixed.
        """
        images = normalise(self.augment(pixels, indices), task)
        if self.recipe.cutout:
            images = cut_out(images, self.holes[indices], self.recipe.cutout)
        if self.recipe.mix == "none":
            return images, labels
        targets = F.one_hot(labels, task.num_classes).to(images.dtype)
        if self.recipe.mix == "mixup":
            return mix_up(images, targets, self.shares[indices])
        return cut_mix(images, targets, self.shares[indices], self.boxes[indices])

    def augment(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """Crop and flip uint8 (n, C, H, W), the samples `indices` (n,) of the data set."""
        if self.recipe.crop_padding:
            pixels = crop(pixels, self.offsets[indices], self.recipe.crop_padding)
        return torch.where(self.flips[indices].view(-1, 1, 1, 1), pixels.flip(3), pixels)


def plan_epoch(samples: int, recipe: Recipe, epoch: int, device: torch.device) -> EpochPlan:
    """Draw an epoch of `samples`: a permutation, and each sample's augmentation as the recipe says."""
    generator = _generator(recipe.seed, epoch)
    order = torch.randperm(samples, generator=generator)
    offsets = torch.randint(2 * recipe.crop_padding + 1, (samples, 2), generator=generator)
    coins = torch.rand(samples, generator=generator) < 0.5
    holes, boxes = torch.rand(2, samples, 2, generator=generator)
    draw = np.random.default_rng((recipe.seed, epoch))  # torch draws no beta from a generator of ours
    shares = torch.from_numpy(draw.beta(recipe.mix_alpha, recipe.mix_alpha, samples)).float()
    if recipe.flip == "alternating":
        # Of every two epochs, one shows an image as it is and one shows its mirror image (Jordan 2024).
        coins = (torch.rand(samples, generator=_generator(recipe.seed, 0)) < 0.5) ^ bool(epoch % 2)
    flips = coins & (recipe.flip != "none")
    drawn = (tensor.to(device) for tensor in (order, offsets, flips, holes, boxes, shares))
    return EpochPlan(recipe, *drawn)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 2**20 + epoch)


def crop(pixels: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad (n, C, H, W) by `padding` black pixels, and cut H x W out of each at its `offsets` (n, 2)."""
    samples, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, C, 2p + 1, 2p + 1, H, W), no copy
    sample = torch.arange(samples, device=pixels.device)
    return windows[sample, :, offsets[:, 0], offsets[:, 1]]


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Set a square of each image (n, C, H, W) to 0, which is the mean (DeVries & Taylor 2017).

    `centres` (n, 2) are 0..1 of height and width; a square may lie partly outside.
    """
    return images.masked_fill(squares(images, centres, torch.full_like(centres[:, 0], side)), 0)


def mix_up(images: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Each image times its share (n,), plus the one before it times the rest (Zhang et al. 2018)."""
    pixels = shares.view(-1, 1, 1, 1)
    mixed = images * pixels + images.roll(1, 0) * (1 - pixels)
    return mixed, _blend(targets, shares)


def cut_mix(images: Tensor, targets: Tensor, shares: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Paste into each image a square of the one before it, of an area of 1 - share (Yun et al. 2019).

    Squares that lie partly outside are smaller; targets follow the area that is left.
    """
    inside = squares(images, centres, (1 - shares).sqrt() * images.shape[-1])
    mixed = torch.where(inside, images.roll(1, 0), images)
    return mixed, _blend(targets, 1 - inside.to(targets.dtype).mean((1, 2, 3)))


def _blend(targets: Tensor, shares: Tensor) -> Tensor:
    return targets * shares[:, None] + targets.roll(1, 0) * (1 - shares[:, None])


def squares(images: Tensor, centres: Tensor, sides: Tensor) -> Tensor:
    """Masks (n, 1, H, W) of the pixels whose middle lies in a square of `sides` (n,) around `centres`."""
    within = []
    for axis, length in enumerate(images.shape[2:]):
        middles = torch.arange(length, device=images.device) + 0.5
        centre = centres[:, axis, None] * length
        within.append((middles - centre).abs() < sides[:, None] / 2)
    rows, columns = within
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
