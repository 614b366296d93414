"""The optimizer, for the settings of a recipe.

`step` makes it, and sets its learning rate before each step. This module does not know the schedule of the
learning rate.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from cnsn_cli.training.recipe import Recipe


def sgd(network: nn.Module, recipe: Recipe, drawn: Collection[str] = ()) -> torch.optim.SGD:
    """The optimizer of the paper, SGD; on CPU and CUDA torch computes its step in one kernel.

    `drawn` names parameters that start at random, although others are pretrained.
    """
    groups = _groups(network, recipe, drawn)
    return torch.optim.SGD(
        groups,
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=groups[0]["lr"].device.type in ("cpu", "cuda"),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step have the learning rate `lr`; pretrained weights get their share of it."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr * group["share"])


def _groups(network: nn.Module, recipe: Recipe, drawn: Collection[str]) -> list[dict[str, Any]]:
    """The trained parameters. Those of one group have the same weight decay and `share` of learning rate.

    Each group has its rate in a tensor (): a captured step reads it again.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = recipe.decay_norms or parameter.dim() > 1  # biases and BN have one axis, weights more
            is_new = "step_down." in name or name in drawn
            groups.setdefault((decays, 1.0 if is_new else recipe.pretrained_lr), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": torch.tensor(recipe.lr * share, device=parameters[0].device),
            "share": share,
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (decays, share), parameters in groups.items()
    ]
