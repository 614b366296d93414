"""A view shares all tensors with the whole network, and is a network of its own in every other respect.

A view is one model of the whole network, or one of its layers. It can be called, switched to evaluation,
folded or saved by itself. It follows every change of the tensors: a step of the optimizer, a move to
another device, loaded weights. (The weights of a narrow model are copies, see `narrow.py`.) Hooks are the
exception: a view shares the hooks of the network, so a hook on either runs in both.

`network.py` and `narrow.py` make the views; this module does not know what a sub-model is.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from cnsn_cli.backbones.meta import shared_copy
from cnsn_cli.network.batch_norm import SharedBatchNorm


def view_of_model(module: nn.Module, index: int) -> nn.Module:
    """A view of `module` with the BN statistics of model `index`; the base-model is 0, sub-model 0 is 1."""

    def norm_of_model(part: nn.Module) -> nn.Module | None:
        return shared_copy(part.norms[index]) if isinstance(part, SharedBatchNorm) else None

    return shared_copy(module, norm_of_model)


def with_statistics(norm: nn.Module, statistics: nn.Module) -> nn.Module:
    """A view of the layer `norm` with the BN statistics of another model."""
    view = shared_copy(norm)
    view._buffers = statistics._buffers
    return view


def with_tensors(view: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """`view`, in which each tensor that `tensors` names, with `prefix`, is replaced.

    The parameters of a view belong to the network that it was made of, so each layer gets a table of its own.
    """
    for path, part in view.named_modules(prefix=prefix.removesuffix(".")):
        part._parameters = {
            key: old if old is None else nn.Parameter(tensors[f"{path}.{key}"], old.requires_grad)
            for key, old in part._parameters.items()
        }
        if part._buffers:
            part._buffers = {key: tensors.get(f"{path}.{key}", old) for key, old in part._buffers.items()}
    return view
