"""The costs of a model: multiply-accumulates (MACs), operations, parameters and bytes.

`cnsn mac`, training and `deploy` call this module. It knows layers and shapes, and no weights. fvcore counts
on a trace of torch.jit, which torch has deprecated; only this file depends on it.
"""

import copy
import warnings
from collections import Counter
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.backbones.meta import on_meta
from cnsn_cli.choices import StepDown
from cnsn_cli.files.model_file import ModelFile
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

ACTIVATIONS = (
    "relu", "hardtanh", "leaky_relu", "elu", "silu", "gelu", "sigmoid", "tanh",
    "hardswish", "hardsigmoid", "mish",
)  # fmt: skip


class Cost(NamedTuple):
    """The costs of one module for one image.

    `macs` are the multiply-adds of conv and linear layers. `operations` are the count of the paper's table 1:
    MACs, plus 1 per output element of a conv with bias, 2 per element of BatchNorm, 1 per activation, 1 per
    input element of a max-pool.
    """

    macs: int
    operations: int


@dataclass(frozen=True)
class ModelCost:
    """The costs of one model. `parameters` counts what is learnt, `bytes` all tensors, BN statistics too."""

    name: str
    drops: int
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
    exits: tuple[int, ...] | None = None,
    task: Task | None = None,
    step_down: StepDown = "patch",
) -> list[ModelCost]:
    """The costs of the base-model and of its sub-models for one image, counted without weights.

    arch: the architecture, such as `vgg16` or `vgg16:width=0.5`.
    exits: the numbers of convs that the sub-models drop, ascending; None: every detach point, and the
        sub-models are called `drop<k>`.
    task: the size and channels of the images, and the classes; None: 3 x 32 x 32 pixels, 10 classes.
    step_down: the kind of the step-down convs, `patch` (one conv) or `stem` (several 3x3 convs).

    Raises ArchitectureError if the architecture is unknown or cannot take the images, DetachPointError if
    `exits` are not legal detach points.
    """
    return model_costs(blank_network(arch, exits, task or Task.plain(), step_down))


def blank_network(
    arch: str | Architecture, exits: tuple[int, ...] | None, task: Task, step_down: StepDown = "patch"
) -> Cnsn:
    """A network on the meta device. `exits=None` gives it a sub-model `drop<k>` at every detach point."""
    backbone = registry.find(arch).build_blank(task)
    with torch.device("meta"):
        if exits is not None:
            return Cnsn(backbone, exits, task, step_down=step_down)
        every = tuple(point.drops for point in detach_points(backbone, task.image_shape))
        network = Cnsn(backbone, every, task, step_down=step_down)
    for submodel in network.submodels:
        submodel.name = f"drop{submodel.drops}"  # type: ignore[assignment]
    return network


def model_costs(network: Cnsn | Model) -> list[ModelCost]:
    """The costs of every model in a network. Shared units are traced once; each model adds up its parts."""
    first, *others = network.models()
    shared = _trace(first, first.task)
    costs = [_total(first, {name: shared[name] for name in _parts(first)})]
    for model in others:
        own = {**shared, "step_down": _trace(model.step_down, model.task)[""]}
        costs.append(_total(model, {name: own[name] for name in _parts(model)}))
    return costs


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


def layer_costs(network: Cnsn | Model) -> list[LayerCost]:
    """The costs of each part of the first model, then of the step-down conv of each other model."""
    first, *others = network.models()
    shared = _trace(first, first.task)
    layers = []
    features = torch.empty(1, *first.task.image_shape, device="meta")
    for name, part in _parts(first).items():
        features = on_meta(part, features)
        layers.append(_layer(name, features, shared[name], part))
    for model in others:
        features = on_meta(model.step_down, torch.empty(1, *model.task.image_shape, device="meta"))
        cost = _trace(model.step_down, model.task)[""]
        layers.append(_layer(f"{model.name}.step_down", features, cost, model.step_down))
    return layers


def _parts(model: Model) -> dict[str, nn.Module]:
    """Name in the model -> step-down conv, unit or head."""
    units = {f"units.{name}": unit for name, unit in model.units.named_children()}
    step_down = {} if model.drops == 0 else {"step_down": model.step_down}
    return {**step_down, **units, "head": model.head}


def _total(model: Model, parts: dict[str, Cost]) -> ModelCost:
    return ModelCost(
        model.name,
        model.drops,
        sum(cost.macs for cost in parts.values()),
        sum(cost.operations for cost in parts.values()),
        _parameters(model),
        sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
    )


def _layer(name: str, features: torch.Tensor, cost: Cost, part: nn.Module) -> LayerCost:
    return LayerCost(name, tuple(features.shape[1:]), *cost, _parameters(part))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trace(module: nn.Module, task: Task) -> dict[str, Cost]:
    """Name -> costs, of `module` (its name is "") and of each module inside it, for one image of `task`."""
    blank = copy.deepcopy(module).eval()._apply(_filled)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # fvcore uses torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(blank, torch.zeros(1, *task.image_shape))
        analysis.clear_op_handles().set_op_handle(**_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counts = analysis.by_module_and_operator()
    return {name: Cost(int(count["macs"]), int(count["operations"])) for name, count in counts.items()}


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros in float32 on the CPU. Integers may be indices: they keep their values if they have any."""
    if tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu", dtype=torch.float32)
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor


def _handles() -> dict[str, Any]:
    """Operator of a trace -> function that returns its costs, as fvcore expects it."""
    from fvcore.nn import jit_handles

    def macs(count: int) -> Counter[str]:
        return Counter(macs=count, operations=count)

    def conv(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        bias = _elements(outputs[0]) if jit_handles.get_shape(inputs[2]) else 0
        return macs(jit_handles.conv_flop_jit(inputs, outputs)["conv"]) + Counter(operations=bias)

    def linear(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return macs(jit_handles.linear_flop_jit(inputs, outputs))

    def per_input(factor: int) -> Any:
        return lambda inputs, outputs: Counter(operations=factor * _elements(inputs[0]))

    handles = {"aten::_convolution": conv, "aten::linear": linear}
    handles |= {"aten::batch_norm": per_input(2), "aten::max_pool2d": per_input(1)}
    in_place = tuple(f"{name}_" for name in ACTIVATIONS)
    return handles | {f"aten::{name}": per_input(1) for name in ACTIVATIONS + in_place}


def _elements(value: Any) -> int:
    return prod(value.type().sizes())
