from typing import get_args

import pytest
import torch
from torch import nn

from cnsn_cli.choices import StepDown
from cnsn_cli.evaluation.costs import count_macs
from cnsn_cli.network.step_down import STEP_DOWNS, patch, stem


def convs(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("build", [patch, stem])
@pytest.mark.parametrize("size", [32, 33, 45, 64, 96])
@pytest.mark.parametrize("feature", [1, 3, 4, 7, 16, 31, 32])
def test_every_shape_is_reached(build, size, feature):
    step_down = build((3, size, size), (12, feature, feature))
    assert step_down(torch.randn(2, 3, size, size)).shape == (2, 12, feature, feature)
    assert len(convs(step_down)) == sum(isinstance(layer, nn.BatchNorm2d) for layer in step_down.modules())


def test_the_stem_of_vgg16_cut_at_7():
    """32 -> 16 -> 8 -> 4 with 3 -> 32 -> 128 -> 256 channels, counted by hand."""
    layers = convs(stem((3, 32, 32), (256, 4, 4)))
    assert [(c.in_channels, c.out_channels) for c in layers] == [(3, 32), (32, 128), (128, 256)]
    assert {(c.kernel_size, c.stride, c.padding) for c in layers} == {((3, 3), (2, 2), (1, 1))}
    base, k2, k7 = count_macs("vgg16", (2, 7), step_down="stem")
    by_hand = 9 * (3 * 32 * 16**2 + 32 * 128 * 8**2 + 128 * 256 * 4**2)
    assert base.macs == 313_201_664
    assert k2.macs == 273_880_064 + (9 - 4) * 3 * 64 * 16**2
    assert k7.macs == 123_474_944 - 3 * 64 * 256 * 4**2 + by_hand == 129_987_584


def test_a_stem_that_cannot_halve_exactly_ends_in_a_patch():
    """33 -> 17 -> 9, and 9 -> 7 with a kernel of 9 - 6 * 1."""
    first, second, last = convs(stem((3, 33, 33), (64, 7, 7)))
    assert (first.out_channels, second.out_channels, last.out_channels) == (8, 32, 64)
    assert (last.kernel_size, last.stride) == ((3, 3), (1, 1))
    (only,) = convs(stem((3, 32, 32), (64, 20, 20)))  # half of 32 is too small
    assert only.stride == (1, 1)


def test_every_word_has_a_function():
    assert tuple(STEP_DOWNS) == get_args(StepDown)
