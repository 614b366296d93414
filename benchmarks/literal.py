"""Three networks of one backbone in plain PyTorch, written by hand: VGG-16 with exits 2 and 7.

`step.py` and `epoch.py` time them beside cnsn.
"""

import torch
import torch.nn.functional as F
from timing import Step
from torch import Tensor, nn

CUTS = {"base": 0, "k=2": 2, "k=7": 7}


def plain_vgg16(width: float) -> tuple[nn.ModuleList, nn.Module]:
    """VGG-16 in plain PyTorch: one unit for each conv, and the head."""
    units, channels = nn.ModuleList(), 3
    for out, convs in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for index in range(convs):
            size = int(out * width)
            layers = [nn.Conv2d(channels, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU(inplace=True)]
            units.append(nn.Sequential(*layers, *[nn.MaxPool2d(2)] * (index == convs - 1)))
            channels = size
    return units, nn.Sequential(nn.Flatten(), nn.Linear(channels, 10))


def step_down(out: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, out, size, size), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Plain(nn.Module):
    """The modules of the paper: shared units and head, two step-down convs."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.units, self.head = plain_vgg16(width)
        stems = {"k=2": step_down(int(64 * width), 2), "k=7": step_down(int(256 * width), 8)}
        self.stems = nn.ModuleDict(stems)

    def run(self, name: str, images: Tensor) -> Tensor:
        features = self.stems[name](images) if name in self.stems else images
        for unit in self.units[CUTS[name] :]:
            features = unit(features)
        return self.head(features)


def weighted(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels) * (1 if name == "base" else 0.5)


def literal(width: float, images: Tensor, labels: Tensor) -> Step:
    network = Plain(width).to(images.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=6e-4)

    def step() -> None:
        optimizer.zero_grad()
        sum(weighted(name, network.run(name, images), labels) for name in CUTS).backward()
        optimizer.step()

    return step


def literal_bf16(width: float, images: Tensor, labels: Tensor) -> Step:
    step = literal(width, images, labels)

    def in_bf16() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            step()

    return in_bf16


def backward_each(width: float, images: Tensor, labels: Tensor) -> Step:
    network = Plain(width).to(images.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=6e-4)

    def step() -> None:
        optimizer.zero_grad()
        for name in CUTS:
            weighted(name, network.run(name, images), labels).backward()
        optimizer.step()

    return step


def apart(width: float, images: Tensor, labels: Tensor) -> Step:
    networks = {name: Plain(width).to(images.device) for name in CUTS}
    optimizers = {
        name: torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=6e-4)
        for name, network in networks.items()
    }

    def step() -> None:
        for name, network in networks.items():
            optimizers[name].zero_grad()
            weighted(name, network.run(name, images), labels).backward()
            optimizers[name].step()

    return step
