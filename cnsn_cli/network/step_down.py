"""The step-down convolution: from the image to the feature map that the first kept layer expects.

`network.py` builds one for each sub-model. A new variant is a word in `choices.StepDown` and a function here.
This module knows two shapes, and no architecture.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from cnsn_cli.choices import StepDown

Shape = tuple[int, int, int]
KERNEL = 3
FEWEST_CHANNELS = 8


def patch(image_shape: Shape, feature_shape: Shape) -> nn.Sequential:
    """Images (N, C, S, S) -> features (N, c, f, f): a conv without padding, then BN and ReLU.

    Per axis, stride = S // f and kernel = S - (f - 1) * stride. If f divides S, the kernel equals the stride,
    as in the paper.
    """
    (channels, height, width), (out, target_height, target_width) = image_shape, feature_shape
    stride = height // target_height, width // target_width
    kernel = height - (target_height - 1) * stride[0], width - (target_width - 1) * stride[1]
    return _conv(nn.Conv2d(channels, out, kernel, stride))


def stem(image_shape: Shape, feature_shape: Shape) -> nn.Sequential:
    """Images (N, C, S, S) -> features (N, c, f, f): several 3x3 convs of stride 2, each with BN and ReLU.

    Convs halve the image as long as it stays at least as large as the features. If it is still larger than
    the features then, a `patch` takes the last step; if no conv fits, a `patch` does everything. The last
    conv doubles the channels and the convs before it quadruple them, so that most MACs are spent where the
    image is small: VGG-16 with k=7 takes 3 -> 32 -> 128 -> 256 channels.
    """
    (channels, *size), (out, *target) = image_shape, feature_shape
    sizes = _halvings(size, target)
    if not sizes:
        return patch(image_shape, feature_shape)
    exact = sizes[-1] == target
    before_last = len(sizes) - exact
    widths = [max(FEWEST_CHANNELS, out // 2 // 4**later) for later in reversed(range(before_last))]
    steps = [channels, *widths, *([out] if exact else [])]
    layers = [_conv(nn.Conv2d(few, many, KERNEL, 2, padding=1)) for few, many in pairwise(steps)]
    if not exact:
        height, width = sizes[-1]
        layers.append(patch((steps[-1], height, width), feature_shape))
    return nn.Sequential(*layers)


def _halvings(size: list[int], target: list[int]) -> list[list[int]]:
    """The size after each 3x3 conv of stride 2 with padding 1, as long as none is smaller than `target`."""
    half = [(side + 1) // 2 for side in size]
    if size == target or any(side < goal for side, goal in zip(half, target, strict=True)):
        return []
    return [half, *_halvings(half, target)]


def _conv(conv: nn.Conv2d) -> nn.Sequential:
    if not conv.weight.is_meta:  # drawing nothing would import torch's compiler
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


def last_layers(step_down: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """The conv that makes the features, and the BN after it."""
    convs = [module for module in step_down.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in step_down.modules() if isinstance(module, nn.BatchNorm2d)]
    return convs[-1], norms[-1]


STEP_DOWNS: dict[StepDown, Callable[[Shape, Shape], nn.Module]] = {"patch": patch, "stem": stem}
