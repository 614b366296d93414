"""Networks without weights: their shapes are known, but almost nothing is computed or stored.

Code that needs only the shapes of a network builds the network or runs it with this module. It knows torch
modules in general, but no architecture, no unit and no sub-model.
"""

import copy
from collections.abc import Callable
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

LARGEST = 2**14  # elements of a tensor that is made with values
LIGHT = 2**25  # elements of all tensors of a network that is computed on the CPU, which takes under a second
DRAWS = {f"aten::{name}_" for name in ("normal", "uniform", "bernoulli", "random", "exponential")}


class QuickMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode in whose context nobody compiles.

    To skip its compiler in the context of another mode, torch would import it, for 1.3 seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class blank(QuickMode):  # type: ignore[no-untyped-call]
    """Inside this context, torch makes large tensors on the meta device.

    Small tensors keep their values: networks of other libraries compute with small tensors while they are
    built, which the meta device cannot do, or keep them as constants.
    """

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _makes(args, kwargs) and prod(args[0]) > LARGEST:
            kwargs = {**kwargs, "device": torch.device("meta")}
        if operator._schema.name in DRAWS and args[0].is_meta:
            return args[0]  # there are no values to draw
        return operator(*args, **kwargs)


def _makes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator makes a tensor whose shape is its first argument."""
    sized = bool(args) and isinstance(args[0], list | tuple) and all(isinstance(n, int) for n in args[0])
    return sized and "device" in kwargs


def emptied(*networks: nn.Module) -> None:
    """Keep only the shapes of all tensors that a file would hold; other buffers are constants and stay."""
    for network in networks:
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    module._buffers[name] = buffer.to("meta")


def blank_images(image_shape: tuple[int, int, int], network: nn.Module, batch: int = 1) -> Tensor:
    """Images (N, C, H, W) for `run_blank`: without values on the meta device, or zeros on the CPU.

    Shapes on the meta device need torch's compiler, whose import takes longer than small images on the CPU
    take. A large network would take longer: a file may ask for any width.
    """
    weights = sum(tensor.numel() for tensor in chain(network.parameters(), network.buffers()))
    small = prod(image_shape) <= LARGEST and weights <= LIGHT
    return torch.zeros(batch, *image_shape, device="cpu" if small else "meta")


def run_blank(module: nn.Module, features: Tensor) -> Tensor:
    """Return the output of `module` in eval mode, for features of `blank_images`; only its shape counts.

    `module` does not change, and its weights are not used.
    """
    view = shared_copy(module)
    for part in view.modules():
        part.training = False
    tensors = {name: emptied_like(tensor, features) for name, tensor in view.named_parameters()}
    tensors |= {name: emptied_like(buffer, features) for name, buffer in view.named_buffers()}
    output: Tensor = functional_call(view, tensors, features)
    return output


def emptied_like(tensor: Tensor, features: Tensor) -> Tensor:
    """A tensor to compute with beside `features`: on the meta device, or zeros on the CPU.

    Integers may be indices: they keep their values if they have some. Floats take the type of `features`.
    """
    if tensor.is_floating_point():  # zeros_like of a tensor on the meta device would import torch's compiler
        return torch.zeros(tensor.shape, device=features.device, dtype=features.dtype)
    if features.is_meta:
        return tensor.to("meta")
    if tensor.is_meta:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    return tensor.detach().cpu()


def shared_copy(
    module: nn.Module, change: Callable[[nn.Module], nn.Module | None] = lambda module: None
) -> nn.Module:
    """Return a copy of the module tree that shares all tensors with `module`.

    If `change` returns a module for a part of the tree, this module replaces the part. If `change` returns
    None, the part is copied and its children are visited.
    """
    replacement = change(module)
    if replacement is not None:
        return replacement
    view = copy.copy(module)
    view._modules = {
        name: None if child is None else shared_copy(child, change) for name, child in module._modules.items()
    }
    return view
