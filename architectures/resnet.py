"""Residual networks of He et al. 2015 (arXiv:1512.03385): the ImageNet and the CIFAR family.

`resnet18` to `resnet152` follow table 1, with projection shortcuts (option B) and the stride on the 3x3
conv, as torchvision does; images up to 64 px get a 3x3 stem instead of the 7x7 conv and the max-pool.
`resnet20` to `resnet110` follow section 4.2: 6n+1 convs and parameter-free shortcuts (option A).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from cnsn_cli import Backbone

from .layers import initialise, narrowed_by_width, pooled_linear, scaled

SMALL_IMAGE = 64  # pixels; images up to this size get the 3x3 stem


class BasicBlock(nn.Module):
    """Two 3x3 convs around a shortcut: (N, channels, h, w) -> (N, out, h / stride, w / stride)."""

    convs, expansion = 2, 1

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(channels, out, stride)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        output: Tensor = self.relu(residual + self.downsample(features))
        return output


class CifarBlock(BasicBlock):
    """A BasicBlock whose shortcut has no parameters."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(channels, out, stride)
        self.downsample = PaddedShortcut(out - channels, stride)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 conv around a shortcut: (N, channels, h, w) -> (N, 4 * out, h / stride, w / stride)."""

    convs, expansion = 3, 4

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv3 = nn.Conv2d(out, 4 * out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(channels, 4 * out, stride)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        output: Tensor = self.relu(residual + self.downsample(features))
        return output


class PaddedShortcut(nn.Module):
    """Shortcut of option A: every `stride`-th pixel, with `extra` channels of zeros after the others."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def projection(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, ...],
    stem: nn.Sequential,
    stage_channels: tuple[int, ...],
    num_classes: int,
) -> Backbone:
    """Build a stem and stages of residual blocks. Each block is a unit; later stages halve the size."""
    units = nn.Sequential(stem)
    channels = stage_channels[0]
    for stage, (out, count) in enumerate(zip(stage_channels, blocks, strict=True)):
        for index in range(count):
            units.append(block(channels, out, stride=2 if stage > 0 and index == 0 else 1))
            channels = out * block.expansion
    initialise(units)
    conv_counts = (1,) + (block.convs,) * sum(blocks)
    return Backbone(units, pooled_linear(channels, num_classes), conv_counts)


def stem_3x3(in_channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


def stem_imagenet(in_channels: int, out: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out, 7, 2, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))


def imagenet_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, ...],
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: float,
) -> Backbone:
    channels = tuple(scaled(c, width) for c in (64, 128, 256, 512))
    stem = stem_3x3 if image_size <= SMALL_IMAGE else stem_imagenet
    return resnet(block, blocks, stem(in_channels, channels[0]), channels, num_classes)


def cifar_resnet(n: int, num_classes: int, in_channels: int, width: float) -> Backbone:
    channels = tuple(scaled(c, width) for c in (16, 32, 64))
    return resnet(CifarBlock, (n, n, n), stem_3x3(in_channels, channels[0]), channels, num_classes)


@narrowed_by_width
def resnet18(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """17 convs in basic blocks."""
    return imagenet_resnet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, image_size, width)


@narrowed_by_width
def resnet34(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """33 convs in basic blocks."""
    return imagenet_resnet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, image_size, width)


@narrowed_by_width
def resnet50(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """49 convs in bottleneck blocks."""
    return imagenet_resnet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, image_size, width)


@narrowed_by_width
def resnet101(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """100 convs in bottleneck blocks."""
    return imagenet_resnet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, image_size, width)


@narrowed_by_width
def resnet152(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """151 convs in bottleneck blocks."""
    return imagenet_resnet(Bottleneck, (3, 8, 36, 3), num_classes, in_channels, image_size, width)


@narrowed_by_width
def resnet20(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """19 convs, n = 3."""
    return cifar_resnet(3, num_classes, in_channels, width)


@narrowed_by_width
def resnet32(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """31 convs, n = 5."""
    return cifar_resnet(5, num_classes, in_channels, width)


@narrowed_by_width
def resnet44(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """43 convs, n = 7."""
    return cifar_resnet(7, num_classes, in_channels, width)


@narrowed_by_width
def resnet56(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """55 convs, n = 9."""
    return cifar_resnet(9, num_classes, in_channels, width)


@narrowed_by_width
def resnet110(num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> Backbone:
    """109 convs, n = 18."""
    return cifar_resnet(18, num_classes, in_channels, width)
