"""The models of one width, which compute with the leading blocks of the base-model's weights.

    base-model            weight (o, i, 3, 3)
                          +---------+------+
                          | block   |      |    the first rows and columns: the weight of the narrow network
                          +---------+      |
                          |                |
                          +----------------+

A narrow network has no weights. Every forward pass cuts the blocks out of the base-model's tensors of the
same name, and gradients flow back into them. Step-down convs and BN statistics belong to one model alone.

`network` makes a Narrow for each width and calls it. This module does not know how an architecture is
narrowed.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.narrowing import leading
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.network.batch_norm import SharedBatchNorm
from cnsn_cli.network.joint_pass import Private, norms_in, run_joined, share_norms
from cnsn_cli.network.model import Model
from cnsn_cli.network.views import view_of_model, with_tensors
from cnsn_cli.task import Task


class Block(NamedTuple):
    """The leading block of a tensor of the base-model, `owner`'s parameter or buffer `key`.

    `name` is its name in both networks. `place` and `key` are where the narrow network has a tensor without
    values in its stead: the shape of this tensor is the shape of the block, and its layout that of the block
    in memory.
    """

    name: str
    owner: nn.Module
    place: nn.Module
    key: str

    @property
    def source(self) -> Tensor:
        """The whole tensor."""
        return _tensor(self.owner, self.key)

    @property
    def is_saved(self) -> bool:
        """Whether files hold the tensor; the others are constants, computed when the network is built."""
        return self.key not in self.owner._non_persistent_buffers_set

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(_tensor(self.place, self.key).shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        return leading(self.shape)

    @property
    def layout(self) -> torch.memory_format:
        pattern = _tensor(self.place, self.key)
        by_channels = pattern.dim() == 4 and pattern.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if by_channels else torch.contiguous_format

    def cut(self) -> Tensor:
        """The block, dense in memory. Gradients flow into a parameter; a buffer is copied."""
        if self.key not in self.place._parameters:  # a layer may change its buffers in place
            return self.copy()
        return self.source[self.slices].contiguous(memory_format=self.layout)

    def copy(self) -> Tensor:
        """The block, in a memory of its own."""
        return self.source.detach()[self.slices].clone(memory_format=self.layout)


class Narrow(nn.Module):
    """The models of one `width`. It holds no weights: `base` has them, a network of `units` and a `head`.

    `backbone` is the narrow network on the meta device; the models in `privates` have step-down convs for it.
    Raises ArchitectureError if the narrow network has a constant that is no block of the base-model's.
    """

    def __init__(
        self, width: float, backbone: Backbone, privates: Sequence[Private], base: nn.Module
    ) -> None:
        super().__init__()
        self.width, self.privates = width, tuple(privates)  # a tuple, because `base` registers the modules
        first = self.privates[0].first_unit  # depths ascend, so this model keeps the most units
        numbered = [(str(number), unit) for number, unit in enumerate(backbone.units) if number >= first]
        self.units, self.head = nn.Sequential(OrderedDict(numbered)), backbone.head
        for name, norm in norms_in(self):
            _take_statistics(norm, base.get_submodule(name))
        share_norms(self, self.privates, with_base=False)
        self.blocks = _blocks(self, base)

    def logits(self, entered: Mapping[Private, Tensor]) -> list[Tensor]:
        """The features of models, after their step-down convs -> the logits (N, classes) of each."""
        tensors = {block.name: block.cut() for block in self.blocks}
        logits: list[Tensor] = functional_call(self, tensors, (entered,), tie_weights=False)
        return logits

    def forward(self, entered: Mapping[Private, Tensor]) -> list[Tensor]:
        """`logits`, once the layers have their blocks."""
        entering = [(private.first_unit, features) for private, features in entered.items()]
        return run_joined(self.units._modules, self.head, entering)

    def model(self, position: int, task: Task) -> Model:
        """The model at `position` by itself. Its weights are copies; the rest is shared with the network."""
        private = self.privates[position]
        tensors = {block.name: block.copy() for block in self.blocks}
        units = {
            number: with_tensors(view_of_model(unit, position), tensors, f"units.{number}.")
            for number, unit in self.units._modules.items()
            if unit is not None and int(number) >= private.first_unit
        }
        head = with_tensors(view_of_model(self.head, position), tensors, "head.")
        step_down = None if private.step_down is None else view_of_model(private.step_down, 0)
        return Model(private.name, private.drops, step_down, units, head, task, self.width)

    def blocks_of(self, private: Private) -> list[Block]:
        """The blocks of parameters that a model computes with."""
        kept = [block for block in self.blocks if private.keeps(block.name)]
        return [block for block in kept if isinstance(block.source, nn.Parameter)]


def _take_statistics(norm: nn.Module, wide: nn.Module) -> None:
    """Let `norm` begin with the leading part of the statistics of the same layer in the base-model."""
    for key, buffer in norm._buffers.items():
        source = wide._buffers[key]
        if buffer is not None and source is not None:
            norm._buffers[key] = source[leading(buffer.shape)].clone()


def _blocks(narrow: nn.Module, base: nn.Module) -> list[Block]:
    """Every tensor of the narrow network but BN statistics."""
    blocks = []
    for path, place in narrow.named_modules():
        owner = base.get_submodule(path) if path else base
        statistics = place._buffers if isinstance(place, _BatchNorm | SharedBatchNorm) else {}
        for key, tensor in {**place._parameters, **place._buffers}.items():
            if tensor is not None and key not in statistics:
                blocks.append(Block(f"{path}.{key}", owner, place, key))
                _check_constant(blocks[-1])
    return blocks


def _check_constant(block: Block) -> None:
    """Raises ArchitectureError if a constant of the narrow network has other values than its block."""
    constant = block.place._buffers.get(block.key)
    if constant is None or block.key not in block.place._non_persistent_buffers_set:
        return
    wide = block.source
    fits = wide.dim() == constant.dim() and wide[block.slices].shape == constant.shape
    if not fits or not (
        wide.is_meta or constant.is_meta or torch.equal(wide[block.slices].cpu(), constant.cpu())
    ):
        raise ArchitectureError(
            f"this architecture cannot be narrowed: its constant {block.name} changes with the width: "
            "give detach points alone"
        )


def _tensor(layer: nn.Module, key: str) -> Tensor:
    """A parameter or buffer of a layer itself."""
    found = layer._parameters.get(key)
    tensor = layer._buffers[key] if found is None else found
    assert tensor is not None
    return tensor
