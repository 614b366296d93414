"""The contract that an architecture fulfils, and the detach points that follow from it."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnsn_cli.backbones.meta import on_meta
from cnsn_cli.errors import ArchitectureError, DetachPointError, one_line
from cnsn_cli.task import LARGEST_IMAGE


class Obstacle(NamedTuple):
    """Why there is no cut behind the conv `after`, inside a unit: several things are `needed` there."""

    after: str
    needed: tuple[str, ...]


class UnitNote(NamedTuple):
    """Of a unit: its `last` layer, and why it cannot be split."""

    last: str
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True)
class Backbone:
    """An architecture as a sequence of units and a head.

    `units` map images (N, C, H, W) to features (N, c, h, w), `head` maps features to logits
    (N, num_classes). A unit is the smallest piece that a cut may not split: conv+BN+ReLU(+pool) in VGG,
    a residual block in ResNet. `conv_counts` says how many conv layers lie on the main path of each
    unit; shortcut convs do not count. All layers but BatchNorm must treat samples independently. `notes`
    on each unit are for people only.
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
                raise ValueError(f"{name} and {seen[module]} are one module: layers with weights stand once")
        names: dict[Tensor, str] = {}
        for name, tensor in whole.state_dict(keep_vars=True).items():
            if names.setdefault(tensor, name) != name:
                raise ValueError(f"{name} and {names[tensor]} are one tensor: give each layer its own")


class DetachPoint(NamedTuple):
    """A legal cut: the first `drops` conv layers go, `unit` is the first unit kept.

    `shape` (c, h, w) is the feature map that this unit expects.
    """

    drops: int
    unit: int
    shape: tuple[int, int, int]


def feature_shapes(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The shape (c, h, w) before each unit and after the last, found on the meta device in eval mode.

    Raises ArchitectureError where `image_shape` (C, H, W) makes a feature map vanish.
    """
    try:
        return _trace_shapes(backbone, image_shape)
    except Exception as error:  # whatever a plug-in may raise
        channels, size, _ = image_shape
        if _fits(backbone, (channels, LARGEST_IMAGE, LARGEST_IMAGE)):
            sizes = range(size, LARGEST_IMAGE + 1)
            least = sizes[bisect_left(sizes, True, key=lambda s: _fits(backbone, (channels, s, s)))]
            hint = f"the smallest size that fits is {least}"
            raise ArchitectureError(f"image size {size} is too small: {hint}") from error
        reason = one_line(error)
        raise ArchitectureError(f"the backbone takes no image of shape {image_shape}: {reason}") from error


def _fits(backbone: Backbone, image_shape: tuple[int, int, int]) -> bool:
    try:
        return bool(_trace_shapes(backbone, image_shape))
    except Exception:
        return False


def _trace_shapes(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    features = torch.empty(1, *image_shape, device="meta")
    shapes = [tuple(features.shape[1:])]
    for unit in backbone.units:
        features = on_meta(unit, features)
        shapes.append(tuple(features.shape[1:]))
    on_meta(backbone.head, features)
    return shapes


def detach_points(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[DetachPoint]:
    """Every legal cut for images of `image_shape` (C, H, W), ascending in dropped convs.

    Legal is 1 <= k < number of conv layers. Where several unit borders have the same k, the last one
    before the next conv counts. A step-down conv shrinks, so the feature map must not exceed the image.
    """
    shapes = feature_shapes(backbone, image_shape)
    total = sum(backbone.conv_counts)
    points = {}
    for unit, drops in enumerate(accumulate(backbone.conv_counts), start=1):
        match shapes[unit]:
            case (channels, height, width) if height <= image_shape[1] and width <= image_shape[2]:
                points[drops] = DetachPoint(drops, unit, (channels, height, width))
    return [point for drops, point in points.items() if 1 <= drops < total]


def choose_exits(points: list[DetachPoint], exits: tuple[int, ...]) -> list[DetachPoint]:
    """The detach points named by `exits`, in the same order.

    Raises DetachPointError unless `exits` ascend and each is legal.
    """
    if list(exits) != sorted(set(exits)):
        tidy = ",".join(map(str, sorted(set(exits))))
        given = ",".join(map(str, exits))
        raise DetachPointError(f"exits must ascend without repeats, not {given}: use {tidy}")
    by_drops = {point.drops: point for point in points}
    for drops in exits:
        if drops not in by_drops:
            legal = ", ".join(map(str, by_drops)) or "none"
            raise DetachPointError(f"{drops} is no detach point: choose from {legal}")
    return [by_drops[drops] for drops in exits]
