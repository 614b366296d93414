"""Muon for conv networks: each weight between the first and the last layer moves by an orthogonal matrix.

    gradient --> momentum --> as a matrix (out, in * kh * kw) --> orthogonalised --> weight

torch.optim.Muon does this, but takes matrices only, and freezes its learning rate in a captured step. Here
the rate is a tensor, and the orthogonalisation is torch's. `optimizer` puts this class together with AdamW,
which trains all other parameters. This module does not know a recipe.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim._muon import (
    DEFAULT_A,
    DEFAULT_B,
    DEFAULT_C,
    DEFAULT_NS_STEPS,
    EPS,
    _zeropower_via_newtonschulz,
)

RMS = 0.2  # the usual size of an update of AdamW (Liu et al. 2025): one learning rate suits both optimizers


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`, also for conv weights (out, in, kh, kw).

    On the CPU, matrices become torch's to the last bit.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, nesterov: bool) -> None:
        super().__init__(groups, {"momentum": momentum, "nesterov": nesterov})
        for group in self.param_groups:
            # torch computes its factors from Python numbers, which have 64 bits.
            group["lr"] = group["lr"].to(torch.float32 if group["lr"].device.type == "mps" else torch.float64)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change each weight that has a gradient."""
        for group in self.param_groups:
            kept = 1 - group["lr"] * group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._update(weight, group["momentum"], group["nesterov"])
                    weight.mul_(kept).addcmul_(update, -group["lr"] * _size(weight))

    def _update(self, weight: Tensor, momentum: float, nesterov: bool) -> Tensor:
        """The orthogonal matrix in the shape of `weight`, which its momentum is closest to."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        moved = gradient.lerp(buffer, momentum) if nesterov else buffer
        coefficients = (DEFAULT_A, DEFAULT_B, DEFAULT_C)
        matrix = _zeropower_via_newtonschulz(moved.flatten(1), coefficients, DEFAULT_NS_STEPS, EPS)
        return matrix.to(weight.dtype).view(weight.shape)


def _size(weight: Tensor) -> float:
    """The factor of the learning rate that gives an update of this shape the size of AdamW's."""
    return RMS * math.sqrt(max(weight.shape[0], weight[0].numel()))


def matrices(network: nn.Module) -> set[nn.Parameter]:
    """The weights that Muon trains: of convs and linear layers, but the first, the last and step-down convs.

    In a sub-model alone a step-down conv is the first one.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, _ConvTransposeNd)
    }
    kept = [module for name, module in layers.items() if "step_down" not in name]
    alone = next(iter(layers), "").startswith("step_down")
    weights = [module._parameters.get("weight") for module in kept[0 if alone else 1 : -1]]
    return {weight for weight in weights if weight is not None and weight.requires_grad}
