"""Where the computing happens."""

import math
from typing import TYPE_CHECKING, Literal, TypeVar

from cnsn_cli.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from cnsn_cli.network import Cnsn, Model

Network = TypeVar("Network", bound="Cnsn | Model")
Precision = Literal["fp32", "bf16"]
FEW_PIXELS, MANY_CHANNELS = 16, 256


def choose_device(name: str = "auto") -> "torch.device":
    """`cpu`, `cuda`, `mps`, or with `auto` the fastest that is there. Raises DeviceError."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name):
        there = ", ".join(device for device, there in available.items() if there)
        raise DeviceError(f"no device {name!r} here: choose auto, {there}")
    return torch.device(name)


def default_precision(device: "torch.device") -> Precision:
    """bf16 on CUDA, which has units for it; fp32 elsewhere."""
    return "bf16" if device.type == "cuda" else "fp32"


def place(network: Network, device: "torch.device") -> Network:
    """Move a network, with its weights in the memory format whose convs measured fastest.

    That is channels last where all layers can read it, but on the CPU for units that take few pixels of many
    channels, in batches as for training and evaluation. The forward pass brings features into the format of
    the weights.
    """
    import torch

    from cnsn_cli.layout import fastest

    network.to(device)
    if device.type == "mps":
        return network
    fastest(network)
    if device.type == "cpu":
        model = network.models()[0]
        for unit, (channels, *size) in zip(model.units, model.unit_shapes(), strict=True):
            if channels >= MANY_CHANNELS and math.prod(size) <= FEW_PIXELS:
                unit.to(memory_format=torch.contiguous_format)
    return network
