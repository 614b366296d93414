"""The numbers that weights are stored in. `files` and `deploy` call this module; it does not know files."""

from typing import TYPE_CHECKING

import torch

from cnsn_cli.errors import CheckpointError

if TYPE_CHECKING:
    from cnsn_cli.network.network import Network

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def cast_weights(network: "Network", dtype: torch.dtype) -> "Network":
    """Cast all parameters of `network` to `dtype`, in place. BN statistics, which are few, keep their dtype.

    Raises CheckpointError if a weight is too large for `dtype`.
    """
    largest = torch.finfo(dtype).max
    for name, parameter in network.named_parameters():
        if not parameter.is_meta and parameter.numel() and parameter.abs().max() > largest:
            raise CheckpointError(
                f"{name} has weights above {largest:.0f}, too large for {dtype}: take bfloat16"
            )
        parameter.data = parameter.data.to(dtype)
    return network
