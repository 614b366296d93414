import pytest
import torch
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.detach_points import choose_points, detach_points
from cnsn_cli.errors import ArchitectureError, DetachPointError
from cnsn_cli.task import Task


def points_of(arch: str, image_size: int = 32) -> list[tuple[int, int, tuple[int, int, int]]]:
    task = Task.plain(image_size=image_size)
    return [tuple(p) for p in detach_points(registry.find(arch).build_blank(task), task.image_shape)]


def test_vgg16_can_be_cut_before_every_conv_but_the_first():
    points = points_of("vgg16")
    assert [drops for drops, _, _ in points] == list(range(1, 13))
    by_drops = {drops: shape for drops, _, shape in points}
    assert by_drops[2] == (64, 16, 16)  # the paper's sub-model 0
    assert by_drops[7] == (256, 4, 4)  # and sub-model 1


def test_residual_blocks_are_not_split_and_shortcuts_do_not_count():
    assert [drops for drops, _, _ in points_of("resnet18")] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert [drops for drops, _, _ in points_of("resnet50")] == list(range(1, 49, 3))
    assert [drops for drops, _, _ in points_of("resnet20")] == list(range(1, 19, 2))


def test_imagenet_stem_above_64_pixels():
    assert points_of("resnet18", 64)[0][2] == (64, 64, 64)
    assert points_of("resnet18", 96)[0][2] == (64, 24, 24)


def test_of_borders_with_equal_k_the_last_before_the_next_conv_counts():
    units = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    points = detach_points(Backbone(units, head, (1, 0, 0, 1, 0)), (3, 8, 8))
    assert points == [(1, 3, (4, 4, 4))]


def test_a_feature_map_larger_than_the_image_is_no_detach_point():
    units = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2)), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    )
    units[1].stride = (2, 2)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    assert [p.drops for p in detach_points(Backbone(units, head, (1, 1, 1)), (3, 8, 8))] == [2]


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ((4,), "4 is no detach point: choose from 1, 3, 5, 7, 9, 11, 13, 15"),
        ((0,), "0 is no detach point: choose from 1, 3, 5, 7, 9, 11, 13, 15"),
        ((17,), "17 is no detach point: choose from 1, 3, 5, 7, 9, 11, 13, 15"),
    ],
)
def test_illegal_exits(exits, message):
    task = Task.plain()
    points = detach_points(registry.find("resnet18").build_blank(task), task.image_shape)
    with pytest.raises(DetachPointError, match=f"^{message}$"):
        choose_points(points, exits)


def test_too_small_an_image_names_the_smallest_that_fits():
    with pytest.raises(ArchitectureError, match=r"image size 16 is too small: the smallest .* is 32"):
        points_of("vgg16", 16)


class Only(nn.Module):
    """Takes images whose side fulfils a condition."""

    def __init__(self, condition) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, images):
        if not self.condition(images.shape[-1]):
            raise RuntimeError(f"no {images.shape[-1]} here")
        return images


@pytest.mark.parametrize(
    ("condition", "size", "message"),
    [
        (
            lambda side: side % 32 == 0,
            225,
            r"image size 225 does not fit \(no 225 here\): 224 fits \(--image-size\)",
        ),
        (
            lambda side: side % 7 == 0 and side > 90,
            230,
            r"image size 230 does not fit \(no 230 here\): 224 fits \(--image-size\)",
        ),
        (
            lambda side: side % 32 == 0,
            20,
            r"image size 20 is too small: the smallest size that fits is 32 \(--image-size\)",
        ),
        (
            lambda side: side > 40,
            20,
            r"image size 20 is too small: the smallest size that fits is 41 \(--image-size\)",
        ),
        (lambda side: side <= 64, 70, r"image size 70 does not fit \(no 70 here\): 64 fits \(--image-size\)"),
        (lambda side: side == 96, 70, r"the backbone takes no image of shape \(3, 70, 70\): no 70 here"),
    ],
)
def test_sizes_that_do_not_fit_are_small_only_if_no_smaller_one_fits(condition, size, message):
    unit = nn.Sequential(Only(condition), nn.Conv2d(3, 4, 3, padding=1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    backbone = Backbone(nn.Sequential(unit), head, (1,))
    with pytest.raises(ArchitectureError, match=f"^{message}$"):
        detach_points(backbone, (3, size, size))


def test_looking_for_shapes_changes_nothing():
    backbone = registry.find("vgg11:width=0.1").build(Task.plain())
    backbone.units[0].eval()
    before = {name: tensor.clone() for name, tensor in backbone.units.state_dict().items()}
    detach_points(backbone, (3, 32, 32))
    assert [unit.training for unit in backbone.units] == [False] + [True] * 7
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.units.state_dict().items())


def test_a_unit_that_fails_for_another_reason_says_why():
    class Odd(nn.Module):
        def forward(self, features):
            raise KeyError("forgotten")

    with pytest.raises(ArchitectureError, match=r"takes no image of shape \(3, 8, 8\): 'forgotten'"):
        detach_points(Backbone(nn.Sequential(Odd()), nn.Flatten(), (1,)), (3, 8, 8))


def test_buffers_that_are_not_saved_are_no_hindrance():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.tensor(2.0), persistent=False)

        def forward(self, features):
            return features * self.factor

    units = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), Scale()), nn.Conv2d(4, 4, 3))
    assert detach_points(Backbone(units, nn.Flatten(), (1, 1)), (3, 8, 8)) == [(1, 1, (4, 6, 6))]
