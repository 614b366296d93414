"""BatchNorm with statistics per model, for layers that several models share.

Base and sub-models see different inputs at the same layer, so one shared set of running statistics
mis-normalises all of them at evaluation. The affine parameters, which are learnt, are shared.
`network.py` puts these layers into a network. A layer knows the models that pass through it by numbers.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
    The others are views of the first. `models` are the numbers of the models in their network.
    """

    def __init__(self, norms: Sequence[nn.Module], models: Sequence[int]) -> None:
        super().__init__()
        first = norms[0]
        self._parameters, self._buffers, self._modules = first._parameters, first._buffers, first._modules
        # A tuple, because torch would register modules of a list or an attribute a second time.
        self.norms: tuple[Any, ...] = tuple(norms)
        self.models = tuple(models)
        self.passing = self.norms  # in the next forward pass

    def choose(self, models: Collection[int]) -> None:
        """From now on only these models pass through the layer."""
        self.passing = tuple(n for n, model in zip(self.norms, self.models, strict=True) if model in models)

    def forward(self, features: Tensor) -> Tensor:
        """(models * N, c, ...) -> the same shape."""
        # Compiled on CUDA, one kernel for all slices is faster. On the CPU it is not: see docs/options.md.
        if features.is_cuda and torch.compiler.is_compiling() and self.can_group():
            return self.grouped(features)
        slices = features.chunk(len(self.passing))
        return torch.cat([norm(part) for norm, part in zip(self.passing, slices, strict=True)])

    def can_group(self) -> bool:
        """Whether all slices are normalised alike: in training, by torch's own layer, and with a momentum."""
        return all(
            norm.training and type(norm) in PLAIN and norm.momentum is not None and norm.track_running_stats
            for norm in self.passing
        )

    def grouped(self, features: Tensor) -> Tensor:
        """What `forward` returns in training, from one normalisation with statistics (models, c)."""
        models, first = len(self.passing), self.norms[0]
        slices: Tensor = features.unflatten(0, (models, -1))  # type: ignore[no-untyped-call]
        slices = slices.to(torch.promote_types(slices.dtype, torch.float32))  # under autocast as torch does
        others = [1, *range(3, slices.dim())]  # all axes but models and channels
        var, mean = torch.var_mean(slices, others, correction=0)
        self._remember(mean, var, slices[0, :, 0].numel())
        scale = torch.rsqrt(var + first.eps)
        scale = scale if first.weight is None else scale * first.weight
        shift = -mean * scale if first.bias is None else first.bias - mean * scale
        shape = (models, 1, -1, *[1] * (slices.dim() - 3))
        normalised: Tensor = slices * scale.view(shape) + shift.view(shape)
        return normalised.flatten(0, 1).to(features.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, values: int) -> None:
        """Update the running statistics; `values` is the number of values of one channel of one model."""
        for norm, its_mean, its_var in zip(self.passing, mean, var * (values / (values - 1)), strict=True):
            norm.running_mean.lerp_(its_mean, norm.momentum)
            norm.running_var.lerp_(its_var, norm.momentum)
            norm.num_batches_tracked.add_(1)

    def train(self, mode: bool = True) -> "SharedBatchNorm":
        super().train(mode)
        for norm in self.norms:
            norm.train(mode)
        return self
