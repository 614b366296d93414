"""Two architectures for cnsn: `plain` defines its units, and cnsn finds the units of `twins`."""

from torch import Tensor, nn

from cnsn_cli import Backbone


def conv(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU())


def plain(num_classes: int, in_channels: int, image_size: int, depth: int = 6) -> Backbone:
    """A unit is conv, BN and ReLU; every second unit halves the size."""
    units = nn.Sequential()
    for index in range(depth):
        units.append(conv(32 if index else in_channels, 32, stride=1 + index % 2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
    return Backbone(units, head, conv_counts=(1,) * depth)


class Twins(nn.Module):
    """An ordinary network: a stem, a block with two paths, a conv, a linear layer."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.stem = conv(3, channels, 2)
        self.left, self.right = conv(channels, channels, 2), nn.Conv2d(channels, channels, 1, 2)
        self.last = conv(channels, 2 * channels, 1)
        self.classifier = nn.Linear(2 * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = self.last(self.left(features) + self.right(features))
        return self.classifier(features.mean(dim=(2, 3)))


def twins(num_classes: int, channels: int = 16) -> nn.Module:
    """Return an ordinary network: cnsn finds its units and detach points."""
    return Twins(num_classes, channels)
