"""The device that computes, and its default precision. Training and evaluation call this module.

It does not know networks.
"""

from typing import TYPE_CHECKING

from cnsn_cli.choices import Precision
from cnsn_cli.errors import DeviceError

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> "torch.device":
    """The device `cpu`, `cuda` or `mps`; `auto` is the fastest one on this machine.

    Raises DeviceError if this machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name):
        there = ", ".join(device for device, there in available.items() if there)
        raise DeviceError(f"no device {name!r} here: choose auto, {there}")
    return torch.device(name)


def default_precision(device: "torch.device") -> Precision:
    """bf16 on CUDA, which has hardware for it; fp32 elsewhere."""
    return "bf16" if device.type == "cuda" else "fp32"
