"""How features and weights lie in memory: channels last, where convs are fastest, or contiguous.

This module alone decides on the memory format: of networks that run, of features that pass through them,
of exported files, of tensors in files and of the optimizer's momentum. It does not know what a network
computes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from cnsn_cli.backbones.meta import blank_images, run_blank

if TYPE_CHECKING:
    from cnsn_cli.network.narrow import Narrow
    from cnsn_cli.network.network import Network

Module = TypeVar("Module", bound=nn.Module)
FEW_PIXELS, MANY_CHANNELS = 16, 256


def place(network: "Network", device: torch.device) -> "Network":
    """Move a network to a device and lay its weights out for large batches, as `for_many_images` does."""
    network.to(device)
    return for_many_images(network)


def for_many_images(network: "Network") -> "Network":
    """Lay out the weights of `network` for large batches, in the format that measured fastest on its device.

    The format is channels last if all layers can read it. On the CPU, units whose features have few pixels
    and many channels are contiguous instead. The forward pass brings features into the format of the weights.
    """
    device = next(network.parameters()).device
    if device.type == "mps":
        return network
    for_few_images(network)
    if device.type == "cpu":
        for units, shapes in _units_and_shapes(network):
            for unit, (channels, *size) in zip(units, shapes, strict=True):
                if channels >= MANY_CHANNELS and math.prod(size) <= FEW_PIXELS:
                    contiguous(unit)
    return network


def _units_and_shapes(network: "Network") -> Iterator[tuple[nn.Sequential, list[tuple[int, ...]]]]:
    """The units of each width, and the shape (c, h, w) of the features that each unit takes."""
    models = network.models()
    yield models[0].units, models[0].unit_shapes()
    for narrow in narrow_parts(network):
        longest = next(model for model in models if model.width == narrow.width)
        yield narrow.units, longest.unit_shapes()


def for_few_images(network: "Network") -> "Network":
    """Lay out the weights of `network` channels last, where convs are fastest; features follow the weights.

    If a layer cannot read such features (`Tensor.view` cannot), all weights are contiguous instead.
    """
    layers = [network, *narrow_parts(network)]
    for part in layers:
        part.to(memory_format=torch.channels_last)
    images = blank_images(network.task.image_shape, network)
    with register_module_forward_hook(_channels_last):
        try:
            run_blank(network.models()[0], images)
        except Exception:  # layers may raise anything
            for part in layers:
                contiguous(part)
    return network


def narrow_parts(network: "Network") -> "Sequence[Narrow]":
    """The narrow networks, whose tensors have no values: how they lie in memory is how blocks will lie."""
    return getattr(network, "narrow", ())


def _channels_last(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Make features channels last, as on a real device: on the meta device convs return contiguous ones."""
    if isinstance(output, Tensor) and output.dim() == 4:
        return output.contiguous(memory_format=torch.channels_last)
    return output


def contiguous(module: Module) -> Module:
    """Make the weights of `module` contiguous, as exported files have them."""
    return module.to(memory_format=torch.contiguous_format)


def like_weights(features: Tensor, unit: nn.Module) -> Tensor:
    """`features` in the memory format of the first conv of `unit`: a conv is slow if the formats differ."""
    for weight in unit.parameters():
        # A 1x1 kernel, or a kernel over one channel, is the same in both formats and does not show which.
        if weight.dim() == 4 and weight.shape[1] > 1 and weight.shape[2:] != (1, 1):
            by_channels = weight.is_contiguous(memory_format=torch.channels_last)
            return features.contiguous(
                memory_format=torch.channels_last if by_channels else torch.contiguous_format
            )
    return features


def copy_like(parameter: Tensor, values: Tensor) -> Tensor:
    """A copy of `values` in the memory format of `parameter`, as the optimizer makes its momentum."""
    return torch.empty_like(parameter, requires_grad=False).copy_(values)


def for_file(tensor: Tensor) -> Tensor:
    """`tensor` detached, contiguous and on the CPU: safetensors accepts no other."""
    return tensor.detach().cpu().contiguous()
