import pytest

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.task import Task

PLUGIN = """
from torch import nn
from cnsn_cli import Backbone

def small(num_classes, in_channels, image_size, depth=2):
    convs = [nn.Conv2d(in_channels if i == 0 else 4, 4, 3, padding=1) for i in range(depth)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return Backbone(nn.Sequential(*convs), head, (1,) * depth)

def raises(num_classes, in_channels, image_size):
    raise RuntimeError("out of\\nideas")

number = 5

def takes_none():
    return None

def returns_none(num_classes, in_channels, image_size):
    return None
"""


def test_an_option_that_looks_like_code_is_a_text():
    with pytest.raises(ArchitectureError, match="width must be above 0"):
        registry.find("vgg16:width=__import__('os').getpid()").build(Task.plain())


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("vgg-16", "unknown architecture 'vgg-16': did you mean vgg16, "),
        ("transformer-xyz", "unknown architecture 'transformer-xyz': choose from resnet18, "),
        ("vgg16:depth=3", "vgg16 has no option 'depth': choose from width"),
        ("vgg16:width", "cannot read 'width' in 'vgg16:width': write name:key=value,key=value"),
        ("vgg16:width=0", "width must be above 0 and at most 64, not 0"),
        ("vgg16:width=-1", "width must be above 0 and at most 64, not -1"),
        ("vgg16:width=wide", "width must be above 0 and at most 64, not 'wide'"),
    ],
)
def test_bad_names_and_options(arch, message):
    with pytest.raises(ArchitectureError) as caught:
        registry.find(arch).build(Task.plain())
    assert message in str(caught.value)


def test_width_scales_channels():
    backbone = registry.find("vgg16:width=0.25").build_blank(Task.plain())
    assert [unit[0].out_channels for unit in backbone.units] == [16, 16, 32, 32] + [64] * 3 + [128] * 6
    backbone = registry.find("resnet20:width=2").build_blank(Task.plain())
    assert [unit.conv1.out_channels for unit in backbone.units[1:]] == [32] * 3 + [64] * 3 + [128] * 3


def test_a_plugin_of_another_distribution(distribution):
    distribution("other", {"other": PLUGIN}, {"small": "other:small"})
    assert registry.architectures()["small"].provider == "other 1.0"
    assert registry.find("small").defaults() == {"depth": 2}
    backbone = registry.find("small:depth=3").build(Task.plain(classes=5))
    assert isinstance(backbone, Backbone)
    assert len(backbone.units) == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("other:raises", "cannot build 'bad' of other 1.0: out of ideas"),
        (
            "other:returns_none",
            "plug-in 'bad' of other 1.0 returned NoneType, not a Backbone or a torch module",
        ),
        (
            "other:missing",
            "cannot import plug-in 'bad' of other 1.0: module 'other' has no",
        ),
        ("other:takes_none", "plug-in 'bad' of other 1.0 takes no num_classes"),
        ("other:number", "plug-in 'bad' of other 1.0 is no function"),
        ("nowhere:f", "cannot import plug-in 'bad' of other 1.0: No module named 'nowhere'"),
    ],
)
def test_a_broken_plugin_is_named_with_its_distribution(distribution, entry, message):
    distribution("other", {"other": PLUGIN}, {"bad": entry})
    with pytest.raises(ArchitectureError) as caught:
        registry.find("bad").build(Task.plain())
    assert message in str(caught.value)
