"""VGG with BatchNorm (Simonyan & Zisserman 2014, table 1) and one linear layer after a global average pool.

At 32x32 the last feature map is 512 x 1 x 1, so the pool does nothing and `vgg16` is the network of the
CNSN paper: 13 convs with bias, BN and ReLU after each, 5 max-pools, a linear layer 512 -> classes.
"""

from torch import nn

from cnsn_cli import Backbone

from .layers import initialise, narrowed_by_width, pooled_linear, scaled

STAGE_CHANNELS = (64, 128, 256, 512, 512)


def vgg(convs_per_stage: tuple[int, ...], num_classes: int, in_channels: int, width: float) -> Backbone:
    """Build units of conv, BN and ReLU; the last unit of each stage also has a max-pool."""
    units = nn.Sequential()
    channels = in_channels
    for stage_channels, convs in zip(STAGE_CHANNELS, convs_per_stage, strict=True):
        for index in range(convs):
            out = scaled(stage_channels, width)
            units.append(conv_unit(channels, out, pool=index == convs - 1))
            channels = out
    initialise(units)
    return Backbone(units, pooled_linear(channels, num_classes), (1,) * len(units))


def conv_unit(channels: int, out: int, pool: bool) -> nn.Sequential:
    unit = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))
    if pool:
        unit.append(nn.MaxPool2d(2))
    return unit


@narrowed_by_width
def vgg11(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """Configuration A: 8 convs."""
    return vgg((1, 1, 2, 2, 2), num_classes, in_channels, width)


@narrowed_by_width
def vgg13(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """Configuration B: 10 convs."""
    return vgg((2, 2, 2, 2, 2), num_classes, in_channels, width)


@narrowed_by_width
def vgg16(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """Configuration D: 13 convs, the network of the CNSN paper."""
    return vgg((2, 2, 3, 3, 3), num_classes, in_channels, width)


@narrowed_by_width
def vgg19(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """Configuration E: 16 convs."""
    return vgg((2, 2, 4, 4, 4), num_classes, in_channels, width)
