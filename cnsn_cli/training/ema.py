"""An exponential moving average of weights, which is often more accurate than the last weights.

The trainer updates it after every step and evaluates it. It does not know what the weights are trained for.
"""

import copy

import torch

from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn


class Average:
    """`network` has the averaged weights. Its BN statistics fit them only after they are recomputed.

    In the first steps the decay is lower, so that the average forgets the weights it started from.
    """

    def __init__(self, network: Cnsn | Model, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: Cnsn | Model, steps: int) -> None:
        """Add the weights that `network` has after `steps` steps to the average."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
