"""The precision of training: the numbers that convs and linear layers compute with.

`setup` asks for it before a run that does not say. This module does not know recipes.
"""

import torch
from torch import nn

from cnsn_cli.choices import Precision
from cnsn_cli.device import emulates_bf16

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fastest_precision(network: nn.Module, device: torch.device) -> Precision:
    """bf16 on CUDA, and on a CPU that has instructions for it; fp32 elsewhere.

    Depthwise convs are an exception: on the CPU they take up to twice as long in bf16.
    """
    if device.type == "cpu":
        return "fp32" if emulates_bf16(device) or any(map(_is_depthwise, network.modules())) else "bf16"
    return "bf16" if device.type == "cuda" else "fp32"


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVS) and module.groups == module.in_channels > 1
