"""How strongly the sub-models pull at the units that they share with the base-model.

Late in training the base-model is nearly right and its gradient is small, while the gradient of a weak
sub-model stays large. The trainer scales and measures the gradients here. This module does not know how the
losses are computed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnsn_cli import distributed
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.metrics import Pull


def step_down_parameters(network: Cnsn | Model) -> list[list[nn.Parameter]]:
    """The parameters of each sub-model's step-down conv; none for a sub-model at full depth."""
    privates = network.submodels if isinstance(network, Cnsn) else ()
    return [list(private.step_down.parameters()) if private.step_down else [] for private in privates]  # type: ignore[union-attr]


def undo_in_step_downs(parameters: Sequence[Sequence[nn.Parameter]], scales: Tensor) -> None:
    """Divide the gradients of each sub-model's `parameters` by its scale, so that scales act on shared units.

    The division is exact, because a gradient is proportional to the weight of its loss.
    """
    for own, scale in zip(parameters, scales, strict=True):
        if gradients := [parameter.grad for parameter in own if parameter.grad is not None]:
            torch._foreach_div_(gradients, scale)


def measure(network: Cnsn | Model, losses: Tensor, scales: Sequence[float]) -> list[Pull]:
    """The pull of every sub-model, from the losses (models,) of a forward pass, whose graph is kept.

    Of a narrow sub-model and the base-model, the gradients in the blocks that both have are compared. A
    sub-model without trainable shared parameters (a frozen base-model) is left out.
    """
    pulls = []
    if not isinstance(network, Cnsn):
        return []
    names = [str(private.name) for private in network.submodels]
    for name, loss, scale in zip(names, losses[1:], scales, strict=True):
        shared = [(p, part) for p, part in network.shared_with_base(name) if p.requires_grad]
        if shared:
            theirs, base = (_gradient(source, shared) for source in (loss, losses[0]))
            norm, base_norm = theirs.norm(), base.norm()
            cosine = theirs @ base / (norm * base_norm).clamp(min=torch.finfo(norm.dtype).tiny)
            pulls.append(Pull(name, scale, norm.item(), base_norm.item(), cosine.item()))
    return pulls


def _gradient(loss: Tensor, shared: Sequence[tuple[nn.Parameter, tuple[slice, ...]]]) -> Tensor:
    gradients = torch.autograd.grad(
        loss, [p for p, _ in shared], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    parts = [gradient[part] for gradient, (_, part) in zip(gradients, shared, strict=True)]
    return distributed.mean(torch.cat([part.flatten() for part in parts]))
