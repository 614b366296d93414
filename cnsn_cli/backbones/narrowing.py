"""Narrow networks: an architecture with a leading part of its channels.

    vgg16:width=0.25 with half the channels  ->  vgg16:width=0.125

`cnsn mac` plans with it; training and files build narrow networks with it. The plug-in says which of its
options narrows its networks. A narrow network takes the leading blocks of the wide network's tensors, so
channel c must mean the same in both: `check_blocks` tries it. This module knows no name of an architecture.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cnsn_cli.backbones import arch_string
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.errors import ArchitectureError, one_line
from cnsn_cli.exits import Exit, widths
from cnsn_cli.task import Task

Shapes = Mapping[str, tuple[int, ...]]
TOLERANCE = 1e-6  # of the largest logit; sums in float64 differ by 1e-12, other channels by 1


def narrowed(arch: Architecture, share: float) -> Architecture:
    """`arch` with the leading `share` of its channels, between 0 and 1.

    Raises ArchitectureError if the plug-in has no option that narrows its networks.
    """
    if not 0 < share < 1:
        raise ArchitectureError(f"a width is a share of the channels between 0 and 1, not {share:g}")
    name, value, is_whole = arch.narrowing()
    text = str(max(1, round(value * share))) if is_whole else f"{value * share:.6g}"
    written = arch_string.with_option(arch.text, name, text)
    return Architecture(written, arch.entry, arch.variant, arch_string.parse(written).options)


def leading(shape: Iterable[int]) -> tuple[slice, ...]:
    """The index of the leading block of this shape: `tensor[leading(shape)]`."""
    return tuple(slice(size) for size in shape)


def narrow_backbones(
    arch: Architecture, wide: Backbone, exits: Iterable[Exit], task: Task
) -> dict[float, Backbone]:
    """The narrow network on the meta device for each width of `exits`; `wide` is a network of `arch`.

    Raises ArchitectureError like `build_narrow`, and if two widths give the same channels.
    """
    shapes, found = {1.0: tensor_shapes(wide)}, {}
    for width in widths(exits):
        found[width] = build_narrow(arch, shapes[1.0], width, task)
        shapes[width] = tensor_shapes(found[width])
        for other in found:
            if other != width and shapes[other] == shapes[width]:
                raise ArchitectureError(
                    f"widths {other:g} and {width:g} give {arch.text} the same channels: leave one out"
                )
    return found


def build_narrow(arch: Architecture, wide: Shapes, share: float, task: Task) -> Backbone:
    """The narrow network of `arch` on the meta device; `wide` are the shapes of the tensors of `arch`.

    Raises ArchitectureError if it cannot be made, or if its tensors are no leading blocks of those of `arch`.
    """
    narrow = narrowed(arch, share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of layers without channels, which are refused below
        blank = narrow.build_blank(task)
    _check_shapes(arch, narrow, wide, tensor_shapes(blank))
    return blank


def _check_shapes(arch: Architecture, narrow: Architecture, wide: Shapes, shapes: Shapes) -> None:
    if shapes == wide:
        raise ArchitectureError(
            f"{narrow.text} has the channels of {arch.text}: give a smaller width, or another architecture"
        )
    for name in {**shapes, **wide}:
        small, large = shapes.get(name), wide.get(name)
        if small is None or large is None or not _is_block(small, large):
            raise ArchitectureError(
                f"{arch.text} cannot be narrowed: {name} of {narrow.text} has shape {_written(small)}, which "
                f"is no leading block of {_written(large)}: give detach points alone"
            )
        if 0 in small and 0 not in large:
            raise ArchitectureError(f"{narrow.text} leaves no channel in {name}: give a larger width")


def check_blocks(arch: Architecture, shares: Iterable[float], task: Task) -> None:
    """Raises ArchitectureError unless channel c means the same in `arch` and in its narrow networks.

    It does not where channels are concatenated or shuffled, where a conv has as many groups but smaller ones,
    or where a layer normalises over channels. The check: with zeros everywhere but in the leading blocks, the
    wide network must give the logits of the narrow network.
    """
    shares = tuple(shares)
    if not shares:
        return
    for share in shares:
        narrowed(arch, share)  # the usual error, before a wide network of 138 M parameters is built
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = arch.build(task)
        for share in shares:
            _check_width(arch, wide, share, task)


def _check_width(arch: Architecture, wide: Backbone, share: float, task: Task) -> None:
    build_narrow(arch, tensor_shapes(wide), share, task)  # shapes first: layers without channels cannot run
    narrow = narrowed(arch, share)
    small = narrow.build(task)
    try:
        expected, found = _logits(_whole(small), _whole(wide), task)
    except Exception as error:  # layers may raise anything
        raise ArchitectureError(f"{narrow.text} cannot run: {one_line(error)}") from error
    largest = expected.abs().max().item()
    if not (math.isfinite(largest) and torch.allclose(found, expected, rtol=0, atol=TOLERANCE * largest)):
        raise ArchitectureError(
            f"{arch.text} cannot be narrowed: its channels are concatenated, shuffled, grouped or normalised "
            f"together, so that they mean something else in {narrow.text}: give detach points alone"
        )


@torch.no_grad()
def _logits(small: nn.Module, large: nn.Module, task: Task) -> tuple[Tensor, Tensor]:
    """The logits of `small`, and those of `large` with the tensors of `small` and zeros."""
    _fill(small)
    _embed(small, large)
    image = torch.randn(2, *task.image_shape, dtype=torch.float64)
    return small(image), large(image)


def _whole(backbone: Backbone) -> nn.Sequential:
    return nn.Sequential(backbone.units, backbone.head).double().eval()


def _fill(network: nn.Module) -> None:
    """Make every value count: new BN layers have zeros and ones, which any order of channels leaves as is.

    A buffer may hold variances, under any name, so its values are positive. Means are around 0, because all
    features would be dead after a ReLU otherwise.
    """
    positive = {name for name, _ in network.named_buffers() if not name.endswith("mean")}
    for name, tensor in _floats(network):
        if name in positive or (tensor.dim() < 2 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() < 2:
            tensor.normal_(0, 0.1)


def _embed(small: nn.Module, large: nn.Module) -> None:
    """Put the tensors of `small` into the leading blocks of `large`, and zeros everywhere else."""
    inside, buffers = dict(_floats(small)), dict(large.named_buffers())
    for name, tensor in _floats(large):
        tensor.fill_(name in buffers)
        tensor[leading(inside[name].shape)] = inside[name]


def _floats(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in network.state_dict().items() if tensor.is_floating_point())


def tensor_shapes(backbone: Backbone) -> Shapes:
    """Name of a tensor of `backbone` -> its shape."""
    tensors = nn.ModuleDict({"units": backbone.units, "head": backbone.head}).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _is_block(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return len(small) == len(large) and all(few <= many for few, many in zip(small, large, strict=True))


def _written(shape: Any) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape)) or "one number"
