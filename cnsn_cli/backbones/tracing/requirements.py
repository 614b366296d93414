"""Requirements on an ordinary network, so that torch.fx can follow images through it and a file can hold it.

units.py calls `check_ordinary` before it traces a network. This module looks at modules, parameters and the
signature of `forward`; it runs nothing and knows nothing of graphs.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from cnsn_cli.errors import ArchitectureError

IMAGES_ONLY = "it must take images alone: give everything else a default, or wrap the network"


def check_ordinary(network: nn.Module) -> None:
    """Raise ArchitectureError unless a network takes images alone and has plain layers in float32."""
    for name, module in network.named_modules():
        _check_layer(f"layer {name}" if name else "the network", module)
    _check_inputs(network)
    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise ArchitectureError(f"{name} has no shape yet: let the factory run the network once")
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ArchitectureError(f"{name} is {kind}, not float32: let the factory call .float()")


def _check_layer(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ArchitectureError(f"{name} is compiled by torch.jit: let the factory leave that out")
    if parametrize.is_parametrized(module):
        raise ArchitectureError(
            f"{name} is parametrized: let the factory call torch.nn.utils.parametrize.remove_parametrizations"
        )
    if "forward" in vars(module):
        raise ArchitectureError(f"{name} has its own forward, which copies would share: put it into a class")
    if isinstance(module, _BatchNorm) and any(child.state_dict() for child in module.children()):
        raise ArchitectureError(f"{name} is a BatchNorm that holds layers with weights: put them beside it")
    for key, value in vars(module).items():
        if isinstance(value, Tensor) and not value.is_leaf:  # such a tensor cannot be copied
            raise ArchitectureError(
                f"{name} computes {key!r} from weights before it is called: let the factory undo that, as "
                "torch.nn.utils.remove_weight_norm does"
            )


def _check_inputs(network: nn.Module) -> None:
    parameters = list(inspect.signature(network.forward).parameters.values())
    name = type(network).__name__
    if not parameters:
        raise ArchitectureError(f"forward of {name} takes nothing: {IMAGES_ONLY}")
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    more = [str(p) for p in needed[1:]] or [str(p) for p in needed if p.kind is p.VAR_POSITIONAL]
    if more:
        raise ArchitectureError(f"forward of {name} takes {', '.join(more)}: {IMAGES_ONLY}")
