"""Every part of a network that is trained already, also parts that nobody asked for.

    width 1      base    2     7      step-downs that were trained
    width 0.75   @0.75 2@0.75 7@0.75  their leading channels, unless a step-down of this width was trained

`cnsn search --from` calls this module. It trains nothing; `ranking` measures BN statistics again.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.narrowing import check_blocks, narrow_backbones
from cnsn_cli.data.datasets import load_recorded
from cnsn_cli.data.origin import RECORDED, Origin
from cnsn_cli.device import choose_device
from cnsn_cli.errors import CheckpointError
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.exits import Exit, widths
from cnsn_cli.files.checkpoint import open_network
from cnsn_cli.files.hub import path_of
from cnsn_cli.network.joint_pass import Private
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.step_down import last_layers
from cnsn_cli.searching.grid import check_budget
from cnsn_cli.searching.ranking import Found, rank, word


@torch.no_grad()
def search_inside(
    checkpoint: str | Path,
    shares: Sequence[float],
    max_macs: Sequence[int] = (),
    given: Origin = RECORDED,
    device: str = "auto",
    skip_bad: bool = False,
) -> Found:
    """Evaluate the sub-models of a network at the widths `shares`, those that were trained and those between.

    BN statistics come from training images, accuracies from test images, of the data `given` or of those that
    the network was trained on. Raises CheckpointError unless the network was trained with widths, BudgetError
    if no part serves a budget.
    """
    path = path_of(checkpoint)
    network, metadata, _ = open_network(path)
    if not isinstance(network, Cnsn) or not widths(network.exits):
        raise CheckpointError(f"{path} has no narrow sub-models: give a network that was trained with widths")
    grid = place(with_every_part(network, metadata.arch, metadata.provider, shares), choose_device(device))
    costs = model_costs(grid)
    for budget in max_macs:
        check_budget(budget, [replace(cost, name=word(cost)) for cost in costs])
    train, test = (
        load_recorded(split, metadata.task, metadata.origin, given, skip_bad).split
        for split in ("train", "test")
    )
    return rank(grid.models(), costs, train, test, max_macs, "test")


def with_every_part(network: Cnsn, arch: str, provider: str | None, shares: Sequence[float]) -> Cnsn:
    """A network with the weights of `network`, and a sub-model for each of its depths at each width."""
    found, task = registry.find(arch, provider), network.task
    trained = {Exit(private.drops, private.width): private for private in map(_private, network.submodels)}
    cuts = _grid(trained, {*shares, *widths(network.exits)})
    check_blocks(found, widths(cuts), task)
    backbone = found.build(task)
    whole = Cnsn(backbone, cuts, task, narrow=narrow_backbones(found, backbone, cuts, task))
    kept = {name: t for name, t in network.state_dict().items() if not name.startswith("submodels.")}
    whole.load_state_dict(kept, strict=False)
    for private in map(_private, whole.submodels):
        if private.step_down is not None:
            source = trained[_source(trained, Exit(private.drops, private.width))]
            private.step_down = narrowed(source.step_down, private.step_down)
    return whole.eval()


def _private(module: nn.Module) -> Private:
    return cast(Private, module)


def _source(trained: Collection[Exit], exit: Exit) -> Exit:
    """The narrowest sub-model that was trained at the same depth, and is at least as wide."""
    wide_enough = [own for own in trained if own.drops == exit.drops and own.width >= exit.width]
    return min(wide_enough, key=lambda own: own.width)


def _grid(trained: Collection[Exit], shares: set[float]) -> tuple[Exit, ...]:
    """Each depth at each width, as far as a step-down conv was trained that is wide enough."""
    widest = {exit.drops: exit.width for exit in sorted(trained) if exit.drops}
    full = [Exit(drops) for drops, width in widest.items() if width == 1]
    narrow = [
        Exit(drops, width)
        for width in sorted(shares, reverse=True)
        for drops in (0, *widest)
        if not drops or widest[drops] >= width
    ]
    return (*full, *narrow)


def narrowed(source: nn.Module | None, pattern: nn.Module) -> nn.Module:
    """A copy of the step-down `source`, whose last conv and BN have the leading channels of `pattern`'s."""
    step_down = copy.deepcopy(cast(nn.Module, source))
    channels = last_layers(pattern)[0].out_channels
    conv, norm = last_layers(step_down)
    conv.out_channels = norm.num_features = channels
    for layer in (conv, norm):
        for key, tensor in {**layer._parameters, **layer._buffers}.items():
            if tensor is not None and tensor.dim():
                _set(layer, key, tensor[:channels].clone())
    return step_down


def _set(layer: nn.Module, key: str, tensor: Tensor) -> None:
    if key in layer._parameters:
        layer._parameters[key] = nn.Parameter(tensor)
    else:
        layer._buffers[key] = tensor
