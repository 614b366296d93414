"""Where a Backbone may be cut, and why it may not be cut elsewhere.

cnsn_cli.network, the costs and `cnsn archs` call this module. It knows units, their convs and the shapes of
their features, but no name of an architecture and no weights.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from torch import nn

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.meta import blank_images, run_blank
from cnsn_cli.errors import DetachPointError, ImageSizeError, one_line
from cnsn_cli.task import LARGEST_IMAGE

LISTED = 2  # how many names a reason lists
STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 64, 128)  # usual multiples that image sizes must be, in pixels


class DetachPoint(NamedTuple):
    """A legal cut: it drops the first `drops` conv layers, and unit number `unit` is the first unit kept.

    `shape` (c, h, w) is the feature map that this unit takes as input.
    """

    drops: int
    unit: int
    shape: tuple[int, int, int]


def detach_points(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[DetachPoint]:
    """Return every legal cut for images of `image_shape` (C, H, W), in ascending order of dropped convs.

    A cut that drops k convs is legal if 1 <= k < number of conv layers. If several unit borders have the
    same k, only the last border before the next conv is a detach point. A step-down conv makes images
    smaller, so the feature map must not be larger than the image. Raises ArchitectureError like
    `feature_shapes`.
    """
    shapes = feature_shapes(backbone, image_shape)
    total = sum(backbone.conv_counts)
    points = {}
    for unit, drops in enumerate(accumulate(backbone.conv_counts), start=1):
        match shapes[unit]:
            case (channels, height, width) if height <= image_shape[1] and width <= image_shape[2]:
                points[drops] = DetachPoint(drops, unit, (channels, height, width))
    return [point for drops, point in points.items() if 1 <= drops < total]


def choose_points(points: list[DetachPoint], chosen: Iterable[int]) -> list[DetachPoint]:
    """Return the detach points that drop the `chosen` numbers of convs. Raises DetachPointError."""
    by_drops = {point.drops: point for point in points}
    chosen = list(chosen)
    for drops in chosen:
        if drops not in by_drops:
            legal = ", ".join(str(legal) for legal in by_drops if legal) or "none"
            raise DetachPointError(f"{drops} is no detach point: choose from {legal}")
    return [by_drops[drops] for drops in chosen]


def feature_shapes(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Return the shape (c, h, w) before each unit and after the last unit.

    The shapes are computed on the meta device in eval mode. Raises ImageSizeError if the backbone takes no
    images of `image_shape` (C, H, W), for example because a feature map vanishes.
    """
    try:
        return _trace_shapes(backbone, image_shape)
    except Exception as error:  # a plug-in may raise any error
        raise ImageSizeError(_misfit(backbone, image_shape, one_line(error))) from error


def _misfit(backbone: Backbone, image_shape: tuple[int, int, int], reason: str) -> str:
    """Why a backbone takes no images of `image_shape`: they are too small only if no smaller size fits."""
    channels, size, _ = image_shape

    def fits(side: int) -> bool:
        return _fits(backbone, (channels, side, side))

    smaller = sorted({size // step * step for step in STEPS} - {0, size}, reverse=True)
    if fitting := next(filter(fits, smaller), None):
        return f"image size {size} does not fit ({reason}): {fitting} fits (--image-size)"
    if not fits(LARGEST_IMAGE):
        return f"the backbone takes no image of shape {image_shape}: {reason}"
    sizes = range(size, LARGEST_IMAGE + 1)
    larger = [-(-size // step) * step for step in STEPS]
    least = min(filter(fits, [sizes[bisect_left(sizes, True, key=fits)], *larger]))
    return f"image size {size} is too small: the smallest size that fits is {least} (--image-size)"


def _fits(backbone: Backbone, image_shape: tuple[int, int, int]) -> bool:
    try:
        return bool(_trace_shapes(backbone, image_shape))
    except Exception:
        return False


def _trace_shapes(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    features = blank_images(image_shape, nn.ModuleList([backbone.units, backbone.head]))
    shapes = [tuple(features.shape[1:])]
    for unit in backbone.units:
        features = run_blank(unit, features)
        shapes.append(tuple(features.shape[1:]))
    run_blank(backbone.head, features)
    return shapes


class Border(NamedTuple):
    """The place after the layer `after`; `reason` says why the place is not a detach point.

    `reason` is None for a detach point. `drops` is the number of convs before the place; inside a unit it is
    None, because several paths run side by side there.
    """

    after: str
    drops: int | None
    reason: str | None


def borders(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[Border]:
    """Return every place after a unit and after a conv inside a unit, in order from images to logits.

    The places inside units are known only if cnsn itself split the network into units. Raises
    ArchitectureError if `image_shape` (C, H, W) is too small.
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
    return f"later layers need {' and '.join(needed[:LISTED])}{more}"


def _reason_at_end(
    shape: tuple[int, ...], drops: int, following: list[int], image_shape: tuple[int, int, int]
) -> str:
    if drops == 0:
        return "no conv layer comes before it"
    if all(later == drops for later in following):
        return "no conv layer follows"
    if len(shape) != 3:
        return "its features are no map (N, c, h, w)"
    if shape[1] > image_shape[1] or shape[2] > image_shape[2]:
        return f"its features are larger than the image: {shape[1]} x {shape[2]}"
    return "the next unit begins without a conv layer: a cut after that unit drops as many convs"
