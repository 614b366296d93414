"""The optimizer, for the settings of a recipe.

`step` makes it. This module does not know the network nor the schedule of the learning rate.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cnsn_cli.training.recipe import Recipe


def sgd(network: nn.Module, recipe: Recipe, lr: Tensor | None = None) -> torch.optim.SGD:
    """The optimizer of the paper, SGD; on CPU and CUDA torch computes its step in one kernel.

    lr: a tensor () that holds the learning rate of the next step; None: the recipe's, as a number.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not recipe.decay_norms:  # biases and BN have one axis, weights of convs and linear layers have more
        groups = [
            {"params": [parameter for parameter in parameters if parameter.dim() > 1]},
            {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        groups,
        recipe.lr if lr is None else lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )
