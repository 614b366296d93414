"""The costs of a model: multiply-accumulates (MACs), operations, parameters and bytes.

`cnsn mac`, training and `deploy` call this module. It knows layers and shapes, and no weights. fvcore
counts on a trace of torch.jit, which torch has deprecated; `operators.py` says what each operator costs. A
trace may lack something, so `check_macs` compares the MACs with those of torch.utils.flop_counter, which
sees every operator that torch runs.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.backbones.meta import blank_images, emptied_like, run_blank
from cnsn_cli.backbones.narrowing import check_blocks, narrow_backbones
from cnsn_cli.choices import StepDown
from cnsn_cli.evaluation import operators
from cnsn_cli.exits import Exit, read_exits
from cnsn_cli.files.model_file import ModelFile
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

STEP_DOWN = "step_down"


class Cost(NamedTuple):
    """The costs of one module for one image.

    `macs` are the multiply-adds of convs, linear layers and products of matrices, as in attention.
    `operations` are the count of the paper's table 1: MACs, plus 1 per output element of a conv with bias, 2
    per element of BatchNorm or another norm, 1 per element of an activation, 1 per input of a max-pool.
    """

    macs: int
    operations: int


@dataclass(frozen=True)
class ModelCost:
    """The costs of one model. `parameters` counts what is learnt, `bytes` all tensors, BN statistics too.

    `width` is the share of the channels of the network that the model is part of.
    """

    name: str
    drops: int
    width: float
    macs: int
    operations: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class LayerCost:
    """The costs of one unit, of the head, or of a step-down conv. `shape` (c, h, w) is that of its output."""

    name: str
    shape: tuple[int, ...]
    macs: int
    operations: int
    parameters: int


def count_macs(
    arch: str | Architecture,
    exits: Iterable[int | str | Exit] | None = None,
    task: Task | None = None,
    step_down: StepDown = "patch",
) -> list[ModelCost]:
    """The costs of the base-model and of its sub-models for one image, counted without weights.

    Arguments:
        arch: the architecture, such as `vgg16` or `vgg16:width=0.5`.
        exits: the sub-models, such as (2, 7, "@0.5"), as for `Cnsn`; None: every detach point, and the
            sub-models are called `drop<k>`.
        task: the size and channels of the images, and the classes; None: 3 x 32 x 32 pixels, 10 classes.
        step_down: the kind of the step-down convs, `patch` (one conv) or `stem` (several 3x3 convs).

    Raises ArchitectureError if the architecture is unknown or cannot take the images, DetachPointError if
    `exits` are not legal detach points.
    """
    return model_costs(blank_network(arch, exits, task or Task.plain(), step_down))


def blank_network(
    arch: str | Architecture,
    exits: Iterable[int | str | Exit] | None,
    task: Task,
    step_down: StepDown = "patch",
) -> Cnsn:
    """A network on the meta device. `exits=None` gives it a sub-model `drop<k>` at every detach point."""
    found = registry.find(arch)
    wide = found.build_blank(task)
    if exits is None:
        return cut_everywhere(wide, task, step_down)
    chosen = read_exits(exits)
    narrow = narrow_backbones(found, wide, chosen, task)
    check_blocks(found, narrow, task)
    with torch.device("meta"):
        return Cnsn(wide, chosen, task, step_down=step_down, narrow=narrow)


def cut_everywhere(backbone: Backbone, task: Task, step_down: StepDown = "patch") -> Cnsn:
    """A network on the meta device with a sub-model `drop<k>` at every detach point of `backbone`."""
    with torch.device("meta"):
        every = tuple(point.drops for point in detach_points(backbone, task.image_shape))
        network = Cnsn(backbone, every, task, step_down=step_down)
    for submodel in network.submodels:
        submodel.name = f"drop{submodel.drops}"  # type: ignore[assignment]
    return network


class Counted(NamedTuple):
    """`models`: the costs of every part of every model, by the name of the model and by part.

    `not_counted` are the names of operators that compute something and are in none of the costs.
    """

    models: dict[str, dict[str, Cost]]
    not_counted: tuple[str, ...]


class Difference(NamedTuple):
    """A model whose MACs are not those that torch.utils.flop_counter counts."""

    name: str
    macs: int
    flop_counter: int


def count(network: Cnsn | Model) -> Counted:
    """Trace a network. Units that several models share are traced once."""
    models: dict[str, dict[str, Cost]] = {}
    left: set[str] = set()
    for first, *others in by_width(network):
        traces = {first.name: _trace(first, first.task)}
        traces |= {model.name: _trace(model.step_down, model.task) for model in others}
        left |= {name for trace in traces.values() for name in operators.not_counted(trace.left_over)}
        parts = {name: traces[first.name].costs[name] for name in _parts(first)}
        step_downs = {model.name: traces[model.name].costs[""] for model in others}
        models |= {model.name: _own(model, parts, step_downs) for model in (first, *others)}
    return Counted(models, tuple(sorted(left)))


def by_width(network: Cnsn | Model) -> list[list[Model]]:
    """The models of each width. The first one has all units that the others of its width have."""
    return [list(models) for _, models in groupby(network.models(), lambda model: model.width)]


def model_costs(network: Cnsn | Model, counted: Counted | None = None) -> list[ModelCost]:
    """The costs of every model in a network, each added up from its parts."""
    found = (counted or count(network)).models
    return [_total(model, list(found[model.name].values())) for model in network.models()]


def _own(model: Model, parts: dict[str, Cost], step_downs: dict[str, Cost]) -> dict[str, Cost]:
    own = {**parts, STEP_DOWN: step_downs[model.name]} if model.name in step_downs else parts
    return {name: own[name] for name in _parts(model)}


def check_macs(network: Cnsn | Model, costs: list[ModelCost]) -> list[Difference]:
    """The models for which torch.utils.flop_counter counts other MACs; it runs them without weights."""
    macs = torch_macs(network)
    pairs = [(cost, macs[cost.name]) for cost in costs]
    return [Difference(cost.name, cost.macs, other) for cost, other in pairs if other != cost.macs]


def torch_macs(network: Cnsn | Model) -> dict[str, int]:
    """Name of a model -> its MACs as torch.utils.flop_counter counts them, which is quicker than a trace."""
    own: dict[str, dict[str, Cost]] = {}
    for first, *others in by_width(network):
        image = blank_images(first.task.image_shape, network)
        parts, features = {}, image
        for name, part in _parts(first).items():
            features, parts[name] = _flop_counted(part, features)
        step_downs = {model.name: _flop_counted(model.step_down, image)[1] for model in others}
        own |= {model.name: _own(model, parts, step_downs) for model in (first, *others)}
    return {name: sum(cost.macs for cost in costs.values()) for name, costs in own.items()}


def _flop_counted(part: nn.Module, features: torch.Tensor) -> tuple[torch.Tensor, Cost]:
    """What `part` returns, and its MACs."""
    with operators.separate(), operators.TorchCount() as counter:
        features = run_blank(part, features)
    return features, Cost(counter.macs, 0)


def file_costs(file: ModelFile) -> list[ModelCost]:
    """The costs of every model in a file. For an exported file they are read from its metadata.

    `bytes` are those of the tensors in the file, which may take two bytes for a weight.
    """
    if file.network is None or file.header is None:
        names = [field.name for field in fields(ModelCost)]
        return [ModelCost(**{name: getattr(model, name) for name in names}) for model in file.metadata.models]
    costs = model_costs(file.network)
    if file.metadata.kind == "network":
        return costs
    return [replace(costs[0], bytes=sum(entry.end - entry.start for entry in file.header.entries.values()))]


def layer_costs(network: Cnsn | Model, counted: Counted | None = None) -> list[LayerCost]:
    """The costs of each part of the first model of a width, then of the step-down conv of each other one.

    Parts of the base-model have their own names, those of others the name of the model before them.
    """
    found, layers = (counted or count(network)).models, []
    for number, (first, *others) in enumerate(by_width(network)):
        image = features = blank_images(first.task.image_shape, network)
        prefix = f"{first.name}." if number else ""
        for name, part in _parts(first).items():
            features = run_blank(part, features)
            layers.append(_layer(f"{prefix}{name}", features, found[first.name][name], part))
        for model in others:
            features = run_blank(model.step_down, image)
            name = f"{model.name}.{STEP_DOWN}"
            layers.append(_layer(name, features, found[model.name][STEP_DOWN], model.step_down))
    return layers


def _parts(model: Model) -> dict[str, nn.Module]:
    """Name in the model -> step-down conv, unit or head."""
    units = {f"units.{name}": unit for name, unit in model.units.named_children()}
    step_down = {} if model.drops == 0 else {STEP_DOWN: model.step_down}
    return {**step_down, **units, "head": model.head}


def _total(model: Model, parts: list[Cost]) -> ModelCost:
    return ModelCost(
        model.name,
        model.drops,
        model.width,
        sum(cost.macs for cost in parts),
        sum(cost.operations for cost in parts),
        _parameters(model),
        sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
    )


def _layer(name: str, features: torch.Tensor, cost: Cost, part: nn.Module) -> LayerCost:
    return LayerCost(name, tuple(features.shape[1:]), *cost, _parameters(part))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Trace(NamedTuple):
    """Name of a module -> its costs, the traced module itself under ""; and operators without a handle."""

    costs: dict[str, Cost]
    left_over: Counter[str]


def _trace(module: nn.Module, task: Task) -> _Trace:
    """Trace `module` on one image of `task`."""
    image = torch.zeros(1, *task.image_shape)
    blank = (
        copy.deepcopy(module)
        .eval()
        ._apply(  # type: ignore[no-untyped-call]
            lambda tensor: emptied_like(tensor, image)
        )
    )
    with warnings.catch_warnings(), torch.no_grad(), operators.separate():
        warnings.simplefilter("ignore")  # fvcore uses torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(blank, image)
        analysis.clear_op_handles().set_op_handle(**operators.handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counts, left_over = analysis.by_module_and_operator(), analysis.unsupported_ops()
    costs = {name: Cost(int(found["macs"]), int(found["operations"])) for name, found in counts.items()}
    return _Trace(costs, left_over)
