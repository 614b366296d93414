"""Parts that the built-in backbones share: channels scaled by width, initial weights, the usual head."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from cnsn_cli import Backbone

Build = TypeVar("Build", bound=Callable[..., Backbone])


def narrowed_by_width(build: Build) -> Build:
    """A decorator for a plug-in: its option `width` narrows its networks, channel by channel."""
    build.narrows = "width"  # type: ignore[attr-defined]
    return build


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded, at least 1.

    Raises ValueError unless `width` is above 0 and at most 64.
    """
    if not isinstance(width, int | float) or not 0 < width <= 64:
        raise ValueError(f"width must be above 0 and at most 64, not {width!r}")
    return max(1, round(channels * width))


def initialise(module: nn.Module) -> None:
    """Initialise convs as in He et al. 2015 (arXiv:1502.01852) and torchvision; set their biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def pooled_linear(channels: int, num_classes: int) -> nn.Sequential:
    """A head that maps features (N, channels, h, w) of any size to logits (N, num_classes)."""
    return nn.Sequential(GlobalAveragePool(), nn.Linear(channels, num_classes))


class GlobalAveragePool(nn.Module):
    """(N, c, h, w) -> (N, c)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))
