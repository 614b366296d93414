"""The contract of every architecture: a sequence of units and a head.

A plug-in returns a Backbone, or a network that the tracing turns into a Backbone. cnsn_cli.network builds its
networks from Backbones. This module knows no name of an architecture, no image and no cut: detach_points.py
says where a Backbone may be cut.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


class Obstacle(NamedTuple):
    """Why a unit cannot be cut after conv `after`: later layers need everything in `needed`."""

    after: str
    needed: tuple[str, ...]


class UnitNote(NamedTuple):
    """Information for people about a unit: its `last` layer, and the `obstacles` to a cut inside it."""

    last: str
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True)
class Backbone:
    """An architecture as a sequence of units and a head.

    `units` map images (N, C, H, W) to features (N, c, h, w), `head` maps features to logits
    (N, num_classes). A unit is the smallest piece that a cut may not split: conv+BN+ReLU(+pool) in VGG,
    a residual block in ResNet. `conv_counts` has the number of conv layers on the main path of each unit;
    shortcut convs do not count. All layers except BatchNorm must treat samples independently. `notes` are
    one UnitNote per unit, for people only.

    Raises TypeError if `units` or `head` has the wrong type, and ValueError if `conv_counts` has the wrong
    length, or if two places share a layer with weights or a tensor.
    """

    units: nn.Sequential
    head: nn.Module
    conv_counts: tuple[int, ...]
    notes: tuple[UnitNote, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.units, nn.Sequential) or not isinstance(self.head, nn.Module):
            raise TypeError("a Backbone takes units as nn.Sequential and a head as nn.Module")
        if len(self.conv_counts) != len(self.units):
            raise ValueError(f"conv_counts has {len(self.conv_counts)} entries for {len(self.units)} units")
        whole = nn.ModuleDict({"units": self.units, "head": self.head})
        seen: dict[nn.Module, str] = {}
        for name, module in whole.named_modules(remove_duplicate=False):
            if seen.setdefault(module, name) != name and next(iter(module.state_dict()), None):
                raise ValueError(
                    f"{name} and {seen[module]} are one module: a layer with weights may appear only once"
                )
        names: dict[Tensor, str] = {}
        for name, tensor in whole.state_dict(keep_vars=True).items():
            if names.setdefault(tensor, name) != name:
                raise ValueError(f"{name} and {names[tensor]} are one tensor: give each layer its own")
