"""Where a Backbone may be cut, and why it may not be cut elsewhere.

Networks, costs and `cnsn archs` ask here. Knows units, their convs and the shapes of their features, but no
name of an architecture and no weights.
"""

from bisect import bisect_left
from itertools import accumulate
from typing import NamedTuple

import torch

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.meta import on_meta
from cnsn_cli.errors import ArchitectureError, DetachPointError, one_line
from cnsn_cli.task import LARGEST_IMAGE

LISTED = 2  # names in a reason


class DetachPoint(NamedTuple):
    """A legal cut: the first `drops` conv layers go, `unit` is the first unit kept.

    `shape` (c, h, w) is the feature map that this unit expects.
    """

    drops: int
    unit: int
    shape: tuple[int, int, int]


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


class Border(NamedTuple):
    """The place after the layer `after`; `reason` says why it is no detach point, None that it is one.

    `drops` is the number of convs before the place, None inside a unit, where several paths run side by side.
    """

    after: str
    drops: int | None
    reason: str | None


def borders(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[Border]:
    """Every place after a conv inside a unit and after a unit, from images to logits.

    The places inside units are known only where cnsn itself took the network to pieces. Raises
    ArchitectureError where `image_shape` (C, H, W) is too small.
    """
    shapes = feature_shapes(backbone, image_shape)[1:]
    convs = list(accumulate(backbone.conv_counts))
    legal = {point.unit for point in detach_points(backbone, image_shape)}
    found = []
    for unit, (shape, drops) in enumerate(zip(shapes, convs, strict=True)):
        name = f"units.{unit}"
        if backbone.notes:
            note = backbone.notes[unit]
            found += [Border(o.after, None, _reason_inside(o.needed)) for o in note.obstacles]
            name = f"{name}, {note.last}"
        reason = None if unit + 1 in legal else _reason_at_end(shape, drops, convs[unit + 1 :], image_shape)
        found.append(Border(name, drops, reason))
    return found


def _reason_inside(needed: tuple[str, ...]) -> str:
    if len(needed) == 1:
        return f"{needed[0]} is no feature map (N, c, h, w)"
    more = f" and {len(needed) - LISTED} more" if needed[LISTED:] else ""
    return f"needed later are {' and '.join(needed[:LISTED])}{more}"


def _reason_at_end(
    shape: tuple[int, ...], drops: int, following: list[int], image_shape: tuple[int, int, int]
) -> str:
    if drops == 0:
        return "no conv layer lies before it"
    if all(later == drops for later in following):
        return "no conv layer follows"
    if len(shape) != 3:
        return "its features are no map (N, c, h, w)"
    if shape[1] > image_shape[1] or shape[2] > image_shape[2]:
        return f"its features are larger than the image: {shape[1]} x {shape[2]}"
    return "the next unit begins without a conv layer: a cut behind it drops as many"
