"""One pass for several models: what a model has for itself, and the way through the layers that all share.

    entering --> unit 0 -> unit 1 --> join -> unit 2 -> ... -> join -> unit 7 -> head
       |                               ^                        ^
       +-- submodel0 ------------------+                        |
       +-- submodel1 -------------------------------------------+

Join: the features of a model are appended to the batch. From there on the batch holds N images of each model
that has joined. `network` runs the base-model and the models of its width so, `narrow` those of a smaller
width. This module does not know which models there are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.backbones.detach_points import DetachPoint
from cnsn_cli.exits import Exit, is_kept
from cnsn_cli.network.batch_norm import SharedBatchNorm, fresh_statistics
from cnsn_cli.network.memory_format import like_weights
from cnsn_cli.network.views import with_statistics


class Private(nn.Module):
    """The tensors of one sub-model alone: its step-down conv, and its BN statistics in the shared layers.

    A sub-model that drops no conv layers has no step-down conv.
    """

    def __init__(self, number: int, exit: Exit, point: DetachPoint, step_down: nn.Module | None) -> None:
        super().__init__()
        self.number, self.name = number, f"submodel{number - 1}"  # the base-model is number 0
        self.step_down = step_down
        self.drops, self.width = exit
        self.first_unit = point.unit

    def enter(self, images: Tensor) -> Tensor:
        """The features that enter the first unit that the sub-model keeps."""
        if self.step_down is None:
            return images.clone()  # the first unit of a plug-in may change its input in place
        features: Tensor = self.step_down(images)
        return features

    def keeps(self, name: str) -> bool:
        """Whether the sub-model computes with the shared tensor or layer `name`."""
        return is_kept(name, self.first_unit)

    def register(self, name: str, statistics: nn.Module) -> None:
        """Register `statistics` under a dotted name, as torch registers nested modules."""
        parent: nn.Module = self
        *containers, last = name.split(".")
        for container in containers:
            if container not in parent._modules:
                parent.add_module(container, nn.Module())
            parent = parent.get_submodule(container)
        parent.add_module(last, statistics)


def share_norms(
    network: nn.Module, privates: Sequence[Private], with_base: bool = True, private: bool = True
) -> None:
    """Give each BN layer in `network.units` and `network.head` statistics for every model that passes it.

    With `with_base`, the statistics in the layer itself belong to a base-model, which passes too. Unless
    `private`, all models have these.
    """
    for name, norm in norms_in(network):
        passing = [submodel for submodel in privates if submodel.keeps(name)]
        norms, numbers = ([norm], [0]) if with_base else ([], [])
        for submodel in passing:
            statistics = fresh_statistics(norm) if private else norm
            if private:
                submodel.register(name, statistics)
            norms.append(with_statistics(norm, statistics))
            numbers.append(submodel.number)
        network.set_submodule(name, SharedBatchNorm(norms, numbers) if len(norms) > 1 else norms[0])


def norms_in(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and BN layers of the units and of the head."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and name.partition(".")[0] in ("units", "head")
    ]


def run_joined(
    units: Mapping[str, nn.Module], head: nn.Module, entering: Sequence[tuple[int, Tensor]]
) -> list[Tensor]:
    """Features of models -> their logits (N, classes), in the same order.

    `units` have their numbers as names. `entering` are the features of each model, with the number of the
    unit that they enter, ascending. The units run once, in order. All layers but BN treat samples
    independently, and BN layers normalise each model's slice by itself: the logits are those of separate
    passes.
    """
    waiting = list(entering)
    joined: list[Tensor] = []
    for number, unit in units.items():
        while waiting and waiting[0][0] <= int(number):
            joined.append(waiting.pop(0)[1])
        if not joined:
            continue
        features = torch.cat(joined) if joined[1:] else joined[0]
        joined = [unit(like_weights(features, unit))]
    logits: Tensor = head(joined[0])
    return list(logits.chunk(len(entering)))
