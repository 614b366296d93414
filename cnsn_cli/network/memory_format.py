"""How features lie in memory."""

import math
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from cnsn_cli.backbones.meta import on_meta

if TYPE_CHECKING:
    from cnsn_cli.network.network import Cnsn, Model

Network = TypeVar("Network", bound="Cnsn | Model")
FEW_PIXELS, MANY_CHANNELS = 16, 256


def place(network: Network, device: torch.device) -> Network:
    """Move a network, with its weights in the memory format whose convs measured fastest.

    That is channels last where all layers can read it, but on the CPU for units that take few pixels of many
    channels, in batches as for training and evaluation. The forward pass brings features into the format of
    the weights.
    """
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


def fastest(network: Network) -> Network:
    """`network` with weights channels last, where convs are fastest, and with them the features.

    Where a layer cannot read such features, as `view`, they are contiguous.
    """
    network.to(memory_format=torch.channels_last)
    images = torch.empty(1, *network.task.image_shape, device="meta")
    with register_module_forward_hook(_channels_last):
        try:
            on_meta(network.models()[0], images)
        except Exception:  # whatever the network raises
            network.to(memory_format=torch.contiguous_format)
    return network


def _channels_last(module: nn.Module, inputs: Any, output: Any) -> Any:
    """On the meta device convs return contiguous features whatever they get."""
    if isinstance(output, Tensor) and output.dim() == 4:
        return output.contiguous(memory_format=torch.channels_last)
    return output
