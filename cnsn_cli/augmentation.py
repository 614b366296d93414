"""Random crops and flips, drawn per sample and applied to a whole batch at once.

What a sample gets depends on the seed, the epoch, and its place in a data set of that many samples: not on
its batch, nor on what was drawn before.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class EpochPlan:
    """The order of the samples in one epoch, and the crop and flip of each.

    `order` (N,) are sample indices. `offsets` (N, 2) and `flips` (N,) belong to samples, not to positions.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor
    padding: int

    def augment(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """Crop and flip uint8 (n, C, H, W), the samples `indices` (n,) of the data set."""
        if self.padding:
            pixels = crop(pixels, self.offsets[indices], self.padding)
        return torch.where(self.flips[indices].view(-1, 1, 1, 1), pixels.flip(3), pixels)


def plan_epoch(
    samples: int, seed: int, epoch: int, padding: int, flip: bool, device: torch.device
) -> EpochPlan:
    """Draw an epoch: a permutation, crop offsets from 0 to 2 * `padding` and, with `flip`, fair coins."""
    generator = torch.Generator().manual_seed(seed * 2**20 + epoch)
    order = torch.randperm(samples, generator=generator)
    offsets = torch.randint(2 * padding + 1, (samples, 2), generator=generator)
    coins = torch.rand(samples, generator=generator) < 0.5
    flips = coins if flip else torch.zeros_like(coins)
    return EpochPlan(order.to(device), offsets.to(device), flips.to(device), padding)


def crop(pixels: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad (n, C, H, W) by `padding` black pixels, and cut H x W out of each at its `offsets` (n, 2)."""
    samples, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, C, 2p + 1, 2p + 1, H, W), no copy
    sample = torch.arange(samples, device=pixels.device)
    return windows[sample, :, offsets[:, 0], offsets[:, 1]]
