"""BatchNorm with statistics per model, for layers that several models share.

Base and sub-models see different inputs at the same layer, so one shared set of running statistics
mis-normalises all of them at evaluation. The affine parameters are shared; they are what is learnt.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def fresh_statistics(norm: nn.Module) -> nn.Module:
    """A module that holds nothing but a copy of the running statistics of `norm`."""
    statistics = nn.Module()
    for name, buffer in norm._buffers.items():
        persistent = name not in norm._non_persistent_buffers_set
        statistics.register_buffer(name, None if buffer is None else buffer.clone(), persistent)
    return statistics


def with_statistics(norm: nn.Module, statistics: nn.Module) -> nn.Module:
    """The same layer with the statistics of another model.

    The copy shares the dictionaries in which torch keeps parameters and buffers, and so follows every
    change to them: a step of the optimizer, a move to another device, loaded weights.
    """
    view = copy.copy(norm)
    view._buffers = statistics._buffers
    return view


class SharedBatchNorm(nn.Module):
    """A BatchNorm layer through which several models pass, joined in one batch.

    It stands for `norm` under the same key names, with the base-model's statistics. `private` are the
    statistics of the sub-models. A joined batch holds an equal slice for the base-model and for each
    sub-model, in that order; each slice is normalised as if it had come alone.
    """

    def __init__(self, norm: nn.Module, private: Sequence[nn.Module]) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = norm._parameters, norm._buffers, norm._modules
        # A tuple, because torch would register modules of a list or an attribute a second time.
        self.norms = (norm, *(with_statistics(norm, statistics) for statistics in private))

    def forward(self, features: Tensor) -> Tensor:
        """(models * N, c, ...) -> the same shape."""
        slices = features.chunk(len(self.norms))
        return torch.cat([norm(part) for norm, part in zip(self.norms, slices, strict=True)])

    def train(self, mode: bool = True) -> "SharedBatchNorm":
        super().train(mode)
        for norm in self.norms:
            norm.train(mode)
        return self
