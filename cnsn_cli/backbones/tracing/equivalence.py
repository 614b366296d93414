"""Checks that the pieces of a network compute what the network computes, in evaluation and in training.

Architecture calls `check_same` after it has built a backbone with weights. This module runs the network and
its pieces and compares their numbers; it knows nothing of graphs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.plugins import GUIDE
from cnsn_cli.errors import ArchitectureError, one_line
from cnsn_cli.task import Task


def check_same(network: nn.Module, backbone: Backbone, task: Task) -> None:
    """Raise ArchitectureError unless a network and its Backbone have the same logits and gradients.

    Logits of evaluation are compared bit for bit, logits and gradients of training up to rounding. The logits
    of an image must not depend on the other images of the batch, because all models share a batch.
    """
    name = type(network).__name__
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ArchitectureError(f"{name} has weights on the meta device: make them on the CPU")
    whole = nn.Sequential(*backbone.units, backbone.head)
    images = torch.randn(2, *task.image_shape, generator=torch.Generator().manual_seed(0))
    try:
        expected, found, among_others = _logits(network, whole, images)
    except RuntimeError:  # the images are too small: `feature_shapes` reports it later
        return
    except Exception as error:  # any error of the network's code, also of code that torch.fx left out
        reason = one_line(error)
        raise ArchitectureError(f"{name} takes no images of shape {task.image_shape}: {reason}") from error
    if expected.isnan().any():
        raise ArchitectureError(f"{name} returns NaN for images of random numbers")
    if not torch.equal(found, expected):
        raise ArchitectureError(
            f"{name} changes tensors in a way that torch.fx does not see: write a plug-in for it ({GUIDE})"
        )
    if not torch.allclose(among_others[0], found[0], rtol=1e-3, atol=1e-5):
        raise ArchitectureError(
            f"{name} lets the images of a batch change each other's logits: no layer but BatchNorm may, "
            "because base and sub-models share a batch"
        )
    _check_training(network, whole, images)


@torch.inference_mode()
def _logits(network: nn.Module, whole: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two images: of the network, of its pieces, and of its pieces when the second image is
    another one.
    """
    others = torch.stack([images[0], -3 * images[1]])
    modes = nn.ModuleList([network, whole])
    modes.eval()
    try:
        return network(images.clone()), whole(images.clone()), whole(others)
    finally:
        modes.train()


def _check_training(network: nn.Module, whole: nn.Module, images: Tensor) -> None:
    """Raise ArchitectureError unless network and pieces have the same logits and gradients in training."""
    name, weights = type(network).__name__, [p for p in network.parameters() if p.requires_grad]
    try:
        expected, found = (_logits_and_gradients(part, images, weights) for part in (network, whole))
    except Exception as error:  # any error of the network's code
        raise ArchitectureError(f"{name} cannot be trained: {one_line(error)}") from error
    if not all(map(_close, found, expected)):
        raise ArchitectureError(
            f"{name} does something in training that its pieces do not, because torch.fx does not see it: "
            f"write a plug-in for it ({GUIDE})"
        )


def _logits_and_gradients(part: nn.Module, images: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Compute logits and gradients in training, and undo the changes of the forward pass to buffers."""
    before = [(buffer, buffer.clone()) for buffer in part.buffers()]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        logits: Tensor = part.train()(images.clone())
    gradients: Sequence[Tensor] = ()
    if weights:
        score = logits.square().mean()
        gradients = torch.autograd.grad(score, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for buffer, values in before:
            buffer.copy_(values)
    return [logits.detach(), *gradients]


def _close(found: Tensor, expected: Tensor) -> bool:
    largest = expected.nan_to_num().abs().max().item() if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=1e-3 * largest, equal_nan=True)
