"""Narrow networks: which option makes them, and whether channel c means the same in them."""

import pytest

from cnsn_cli.backbones.narrowing import build_narrow, check_blocks, narrowed, tensor_shapes
from cnsn_cli.backbones.registry import find
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.task import Task

SMALL = Task.plain(classes=10, image_size=64)
NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, out, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, features):
        return self.norm(self.conv(features)).relu()


class Net(nn.Module):
    def __init__(self, num_classes, width, kind):
        super().__init__()
        c = round(16 * width)
        self.kind, self.c = kind, c
        self.first, self.second = Block(3, c), Block(c, c)
        wide = 2 * c if kind == "concatenated" else c
        groups = {"grouped": 4, "groups of four": c // 4, "depthwise": c}.get(kind, 1)
        self.third = Block(wide, wide, groups)
        if kind == "normalised":
            self.third.norm = nn.GroupNorm(2, wide)
        self.linear = nn.Linear(wide, num_classes)

    def forward(self, images):
        features = self.first(images)
        if self.kind == "concatenated":
            features = torch.cat([features, self.second(features)], 1)
        else:
            features = self.second(features)
        if self.kind == "shuffled":
            features = features.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.linear(self.third(features).mean((2, 3)))


def make(kind):
    def build(num_classes, width: float = 1.0, scale: float = 1.0):
        return Net(num_classes, width, kind)

    build.narrows = "width"
    return build


plain, concatenated, shuffled = make("plain"), make("concatenated"), make("shuffled")
grouped, normalised = make("grouped"), make("normalised")
groups_of_four, depthwise = make("groups of four"), make("depthwise")
idle = make("plain")
idle.narrows = "scale"


def deeper(num_classes, width: float = 1.0):
    layers = [Block(3, 8)] + [Block(8, 8) for _ in range(2 if width == 1 else 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


deeper.narrows = "width"


def unmarked(num_classes, width: float = 1.0):
    return Net(num_classes, width, "plain")
"""
NAMES = (
    "plain", "concatenated", "shuffled", "grouped", "normalised", "groups_of_four", "depthwise", "idle",
    "deeper", "unmarked",
)  # fmt: skip


@pytest.fixture
def nets(distribution):
    distribution("narrow", {"narrow_nets": NETS}, {name: f"narrow_nets:{name}" for name in NAMES})


@pytest.mark.parametrize(
    ("arch", "share", "expected"),
    [
        ("vgg16", 0.5, "vgg16:width=0.5"),
        ("vgg16:width=0.25", 0.64, "vgg16:width=0.16"),
        ("vgg16:width=1", 1 / 3, "vgg16:width=0.333333"),
        ("resnet20:width=2.0", 0.123456789, "resnet20:width=0.246914"),
        ("torchvision:mobilenet_v2", 0.5, "torchvision:mobilenet_v2:width_mult=0.5"),
        (
            "torchvision:mobilenet_v2:dropout=0.1,width_mult=1.4",
            0.5,
            "torchvision:mobilenet_v2:dropout=0.1,width_mult=0.7",
        ),
        ("torchvision:resnet50", 0.3, "torchvision:resnet50:width_per_group=19"),
        ("timm:wide_resnet50_2", 0.3, "timm:wide_resnet50_2:base_width=38"),
    ],
)
def test_the_string_of_a_narrow_network(arch, share, expected):
    """The value of the option times the share, with six digits; whole numbers are rounded, to at least 1."""
    narrow = narrowed(find(arch), share)
    assert narrow.text == expected
    assert narrow.options == find(expected).options
    assert narrow.variant == find(arch).variant


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg19", "resnet18", "resnet34", "resnet50", "resnet20"])
def test_built_in_networks_can_be_narrowed(name):
    check_blocks(find(f"{name}:width=0.125"), (0.5,), Task.plain())


@pytest.mark.parametrize(
    ("arch", "share"),
    [
        ("torchvision:mobilenet_v2", 0.5),
        ("torchvision:mobilenet_v3_small", 0.75),
        ("torchvision:mobilenet_v3_large", 0.5),
        ("torchvision:resnet50", 0.5),
        ("timm:resnet26", 0.5),
        ("timm:resnet26d", 0.25),
        pytest.param("torchvision:resnet101", 0.5, marks=pytest.mark.long),
        pytest.param("torchvision:resnet152", 0.5, marks=pytest.mark.long),
        pytest.param("timm:resnet50", 0.5, marks=pytest.mark.long),
        pytest.param("timm:resnet101", 0.5, marks=pytest.mark.long),
        pytest.param("timm:seresnet50", 0.5, marks=pytest.mark.long),
        pytest.param("timm:wide_resnet50_2", 0.5, marks=pytest.mark.long),
    ],
)
def test_networks_of_libraries_that_can_be_narrowed(arch, share):
    check_blocks(find(arch), (share,), SMALL)


@pytest.mark.parametrize("name", ["plain", "depthwise", "groups_of_four"])
def test_a_plug_in_says_what_narrows_it(nets, name):
    check_blocks(find(name), (0.5,), SMALL)


@pytest.mark.parametrize("name", ["concatenated", "shuffled", "grouped", "normalised"])
def test_channels_that_mean_something_else_are_refused(nets, name):
    if name != "grouped":  # shapes alone do not show it
        build_narrow(find(name), tensor_shapes(find(name).build_blank(SMALL)), 0.5, SMALL)
    with pytest.raises(ArchitectureError, match=f"{name} cannot be narrowed: its channels are concatenated"):
        check_blocks(find(name), (0.5,), SMALL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unmarked", "unmarked has no option that narrows it: give detach points alone, or let the plug-in"),
        ("idle", "idle:scale=0.5 has the channels of idle: give a smaller width, or another architecture"),
        (
            "deeper",
            r"deeper cannot be narrowed: \S+ of deeper:width=0.5 has shape .* is no leading block",
        ),
        ("torchvision:vgg16", "torchvision:vgg16 has no option that narrows it"),
        ("timm:convnext_atto", "timm:convnext_atto has no option that narrows it"),
    ],
)
def test_networks_that_cannot_be_narrowed(nets, name, message):
    with pytest.raises(ArchitectureError, match=message):
        check_blocks(find(name), (0.5,), SMALL)


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.5])
def test_a_width_is_a_share(share):
    with pytest.raises(ArchitectureError, match=f"a share of the channels between 0 and 1, not {share}"):
        narrowed(find("vgg16"), share)
