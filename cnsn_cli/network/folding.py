"""Folding BatchNorm into the convs before it: the same function with fewer layers, for inference.

`deploy` folds detached models, and `files.checkpoint` builds the layers of a folded file with it. Folding
takes one model by itself and finds its convs and BN layers in a forward pass; it does not know architectures.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cnsn_cli.errors import CheckpointError
from cnsn_cli.network.model import Model

TOLERANCE = 1e-5  # of the largest logit


def fold(model: Model) -> Model:
    """A copy of `model`, in eval mode. Each BN that takes the output of a conv becomes part of that conv."""
    folded = copy.deepcopy(model).eval()
    for conv_name, norm_name in conv_norm_pairs(model):
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        folded.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var,arg-type]
        folded.set_submodule(norm_name, nn.Identity())
    return folded


def conv_norm_pairs(model: Model) -> list[tuple[str, str]]:
    """The names of each conv and of the BN after it, in the order of a forward pass on the meta device."""
    blank = copy.deepcopy(model).to("meta").eval()
    names = {module: name for name, module in blank.named_modules()}
    returned: dict[int, tuple[nn.Module, Tensor]] = {}  # holds the tensors: ids must stay unique
    pairs = []

    def remember(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        returned[id(output)] = conv, output

    def look_up(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in returned:
            pairs.append((names[returned[id(inputs[0])][0]], names[norm]))

    for module in names:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(remember)
        elif type(module) is nn.BatchNorm2d and module.track_running_stats:  # subclasses may do more
            module.register_forward_pre_hook(look_up)
    blank(torch.empty(1, *model.task.image_shape, device="meta"))
    return pairs


def check_equal(model: Model, folded: Model) -> None:
    """Raises CheckpointError if the logits of both for 8 random images differ by more than TOLERANCE."""
    images = torch.randn(8, *model.task.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model.eval()(images), folded(images)
    difference = ((expected - found).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"folding BN changes the logits of {model.name} by {difference:.1e} of the largest, more than "
            f"{TOLERANCE:.0e}: detach it without --fold-bn"
        )
