"""Every place where one might want to cut a backbone, and why it is no detach point where it is none."""

from itertools import accumulate
from typing import NamedTuple

from cnsn_cli.backbones.backbone import Backbone, detach_points, feature_shapes

LISTED = 2  # names in a reason


class Border(NamedTuple):
    """The place behind the layer `after`. A `reason` says why it is no detach point.

    `drops` is the number of convs before it, None inside a unit, where several paths run side by side.
    """

    after: str
    drops: int | None
    reason: str | None


def borders(backbone: Backbone, image_shape: tuple[int, int, int]) -> list[Border]:
    """The places behind every conv inside a unit and behind every unit, from images to logits.

    What lies inside a unit is known of networks that were taken to pieces by cnsn. Raises ArchitectureError
    where `image_shape` (C, H, W) is too small.
    """
    shapes = feature_shapes(backbone, image_shape)[1:]
    convs = list(accumulate(backbone.conv_counts))
    legal = {point.unit for point in detach_points(backbone, image_shape)}
    found = []
    for unit, (shape, drops) in enumerate(zip(shapes, convs, strict=True)):
        name = f"units.{unit}"
        if backbone.notes:
            note = backbone.notes[unit]
            found += [Border(o.after, None, _inside(o.needed)) for o in note.obstacles]
            name = f"{name}, {note.last}"
        reason = None if unit + 1 in legal else _reason(shape, drops, convs[unit + 1 :], image_shape)
        found.append(Border(name, drops, reason))
    return found


def _inside(needed: tuple[str, ...]) -> str:
    if len(needed) == 1:
        return f"{needed[0]} is no feature map (N, c, h, w)"
    more = f" and {len(needed) - LISTED} more" if needed[LISTED:] else ""
    return f"needed later are {' and '.join(needed[:LISTED])}{more}"


def _reason(
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
