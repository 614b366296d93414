"""An exponential moving average of weights, which is often more accurate than the last weights.

The trainer updates it after every step and evaluates it. It does not know what the weights are trained for.
"""

import copy

import torch
from torch import Tensor

from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn


class Average:
    """`network` has the averaged weights. Its BN statistics fit them only after they are recomputed.

    In the first steps the decay is lower, so that the average forgets the weights it started from.
    """

    def __init__(self, network: Cnsn | Model, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self.decay = decay
        self.averages: list[Tensor] = list(self.network.parameters())
        self.weights: list[Tensor] = list(network.parameters())
        self.share = torch.zeros((), device=self.weights[0].device)  # of the new weights in the average

    def set(self, steps: int) -> None:
        """Before `update`: the weights to come are those after `steps` steps."""
        self.share.fill_(1 - min(self.decay, (1 + steps) / (10 + steps)))

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights that the trained network has now to the average."""
        torch._foreach_lerp_(self.averages, self.weights, [self.share] * len(self.weights))
