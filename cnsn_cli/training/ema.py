"""An exponential moving average of weights, which is often better than the last of them."""

import copy

import torch

from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn


class Average:
    """`network` has the averaged weights; its BN statistics do not fit them until they are computed anew.

    The decay of the first steps is lower, so that the average forgets where it started.
    """

    def __init__(self, network: Cnsn | Model, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: Cnsn | Model, steps: int) -> None:
        """Take in the weights of `network` after `steps` steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
