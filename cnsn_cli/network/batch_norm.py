"""BatchNorm with statistics per model, for layers that several models share.

Base and sub-models see different inputs at the same layer, so one shared set of running statistics
mis-normalises all of them at evaluation. The affine parameters, which are learnt, are shared.
`network.py` puts these layers into a network. A layer knows how many models pass through it, not which.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def fresh_statistics(norm: nn.Module) -> nn.Module:
    """A module that holds a copy of the running statistics of `norm`, and nothing else."""
    statistics = nn.Module()
    for name, buffer in norm._buffers.items():
        persistent = name not in norm._non_persistent_buffers_set
        statistics.register_buffer(name, None if buffer is None else buffer.clone(), persistent)
    return statistics


class SharedBatchNorm(nn.Module):
    """A BatchNorm layer through which several models pass, joined in one batch.

        joined batch    [ base  | submodel0 | submodel1 ]    each slice holds the same N images
                            |         |           |
                        norms[0]   norms[1]    norms[2]      own statistics, the same affine parameters
                            |         |           |
        joined batch    [ base  | submodel0 | submodel1 ]

    Each slice is normalised as if it were the whole batch. `norms` holds one BN layer for each model. The
    first belongs to the base-model; this layer has its parameters and statistics under the same key names.
    The others are views of the first.
    """

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        first = norms[0]
        self._parameters, self._buffers, self._modules = first._parameters, first._buffers, first._modules
        # A tuple, because torch would register modules of a list or an attribute a second time.
        self.norms = tuple(norms)

    def forward(self, features: Tensor) -> Tensor:
        """(models * N, c, ...) -> the same shape."""
        slices = features.chunk(len(self.norms))
        return torch.cat([norm(part) for norm, part in zip(self.norms, slices, strict=True)])

    def train(self, mode: bool = True) -> "SharedBatchNorm":
        super().train(mode)
        for norm in self.norms:
            norm.train(mode)
        return self
