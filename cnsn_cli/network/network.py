"""The network: a base-model and its sub-models, all logits from one forward pass."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.detach_points import DetachPoint, choose_exits, detach_points
from cnsn_cli.backbones.meta import on_meta
from cnsn_cli.data.pixels import normalise, preprocess
from cnsn_cli.network.batch_norm import SharedBatchNorm, fresh_statistics
from cnsn_cli.network.step_down import STEP_DOWNS
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from PIL.Image import Image

BatchNormMode = Literal["private", "shared"]
StepDown = Literal["patch", "stem"]


class Model(nn.Module):
    """One model by itself: the step-down conv (none in the base-model), the kept units and the head.

    Units keep the numbers that they have in the backbone, also in the names of their tensors. `name` is
    `base`, `submodel0`, ...; `drops` is the number of conv layers that the step-down conv stands for.
    """

    runtime = "PyTorch"

    def __init__(
        self,
        name: str,
        drops: int,
        step_down: nn.Module | None,
        units: Mapping[str, nn.Module],
        head: nn.Module,
        task: Task,
    ) -> None:
        super().__init__()
        self.name = name
        self.drops = drops
        self.step_down = step_down or nn.Identity()
        self.units = nn.Sequential(OrderedDict(units))
        self.head = head
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, classes)."""
        features = self.step_down(images)
        for unit in self.units:
            features = unit(_like_weights(features, unit))
        logits: Tensor = self.head(features)
        return logits

    def unit_shapes(self) -> list[tuple[int, ...]]:
        """The shape (c, h, w) that each unit takes."""
        shapes = []
        features = on_meta(self.step_down, torch.empty(1, *self.task.image_shape, device="meta"))
        for unit in self.units:
            shapes.append(tuple(features.shape[1:]))
            features = on_meta(unit, features)
        return shapes

    @property
    def first_unit(self) -> int:
        """The number of the first unit kept."""
        return int(next(iter(self.units._modules)))

    def inputs(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (N, C, H, W) -> normalised images, on the device of the model."""
        return normalise(pixels.to(next(self.parameters()).device), self.task)

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (N, C, H, W) -> logits (N, classes), on the device of the model."""
        logits: Tensor = self(self.inputs(pixels))
        return logits

    def models(self) -> list["Model"]:
        """This one alone, so that a detached model can be handled like a whole network."""
        return [self]

    def preprocess(self, image: "Image") -> Tensor:
        """A PIL image to the normalised tensor (C, H, W) that the model takes."""
        return preprocess(image, self.task)


class SubModel(nn.Module):
    """What is private to a sub-model: its step-down conv, and its BN statistics in the shared layers."""

    def __init__(self, name: str, network: "Cnsn", point: DetachPoint) -> None:
        super().__init__()
        self.name = name
        self.step_down = STEP_DOWNS[network.step_down_variant](network.task.image_shape, point.shape)
        self.drops = point.drops
        self.first_unit = point.unit
        self._network = (network,)  # a tuple, so that torch does not register the network below its own part

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, classes), of this sub-model alone."""
        logits: Tensor = self.model()(images)
        return logits

    def model(self) -> Model:
        """This sub-model as an ordinary network that shares its tensors with the whole one."""
        (network,) = self._network
        index = next(i for i, submodel in enumerate(network.submodels) if submodel is self)
        return network.model(index + 1)

    def keep(self, name: str, statistics: nn.Module) -> None:
        """Register `statistics` under a dotted name, as torch registers nested modules."""
        parent: nn.Module = self
        *containers, last = name.split(".")
        for container in containers:
            if container not in parent._modules:
                parent.add_module(container, nn.Module())
            parent = parent.get_submodule(container)
        parent.add_module(last, statistics)


class Cnsn(nn.Module):
    """A base-model with a sub-model at each of the `exits`; all weights but the step-down convs are shared.

    `bn="private"` gives each model its own BN statistics, `bn="shared"` one running set for all;
    `step_down` is what the step-down convs are made of. The network takes over the modules of `backbone`,
    which must not be used for anything else. Raises DetachPointError where `exits` are no legal detach
    points, ArchitectureError for too small images.
    """

    def __init__(
        self,
        backbone: Backbone,
        exits: tuple[int, ...],
        task: Task,
        bn: BatchNormMode = "private",
        step_down: StepDown = "patch",
    ) -> None:
        super().__init__()
        self.task = task
        self.bn = bn
        self.step_down_variant = step_down
        self.base_frozen = False
        self.exits = exits
        points = choose_exits(detach_points(backbone, task.image_shape), exits)
        self.units = nn.Sequential(*backbone.units)  # numbered by position, whatever they were called
        self.head = backbone.head
        self.submodels = nn.ModuleList(
            SubModel(f"submodel{index}", self, point) for index, point in enumerate(points)
        )
        self._share_norms()

    def _share_norms(self) -> None:
        for name, norm in list(self.named_modules()):
            part, _, rest = name.partition(".")
            if part not in ("units", "head") or not isinstance(norm, _BatchNorm):
                continue
            passing = [
                s for s in self._submodels() if part == "head" or s.first_unit <= int(rest.split(".")[0])
            ]
            statistics = [norm if self.bn == "shared" else fresh_statistics(norm) for _ in passing]
            if self.bn == "private":
                for submodel, own in zip(passing, statistics, strict=True):
                    submodel.keep(name, own)
            if passing:
                self.set_submodule(name, SharedBatchNorm(norm, statistics))

    def _submodels(self) -> list[SubModel]:
        return [cast(SubModel, submodel) for submodel in self.submodels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, C, H, W) -> logits (N, classes) of the base-model, sub-model 0, 1, ...

        The units run once, in order. Where a sub-model joins, its step-down features are appended to
        the batch; as all layers but BN treat samples independently, the result is that of separate passes.
        """
        # At first, for a unit of somebody else's may change the images that it is given.
        joining = {submodel.first_unit: submodel.step_down(images) for submodel in self._submodels()}
        features = images
        for index, unit in enumerate(self.units):
            if index in joining:
                features = torch.cat([features, joining[index]])
            features = unit(_like_weights(features, unit))
        logits: Tensor = self.head(features)
        return list(logits.chunk(1 + len(self.submodels)))

    @property
    def base(self) -> Model:
        """The base-model as an ordinary network that shares its tensors with the whole one."""
        return self.model(0)

    def models(self) -> list[Model]:
        """The base-model, sub-model 0, 1, ... as ordinary networks."""
        return [self.model(index) for index in range(1 + len(self.submodels))]

    def model(self, index: int) -> Model:
        """Model 0 is the base-model, 1 is sub-model 0, and so on."""
        submodel = self._submodels()[index - 1] if index else None
        units = {
            name: _single(unit, index)
            for name, unit in self.units._modules.items()  # named_children would leave out repetitions
            if unit is not None and (submodel is None or int(name) >= submodel.first_unit)
        }
        head = _single(self.head, index)
        if submodel is None:
            return Model("base", 0, None, units, head, self.task).train(self.training)
        step_down = _single(submodel.step_down, index)
        return Model(submodel.name, submodel.drops, step_down, units, head, self.task).train(self.training)

    def freeze_base(self) -> None:
        """From here on, training changes step-down convs and the sub-models' BN statistics alone."""
        self.base_frozen = True
        for part in (self.units, self.head):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Cnsn":
        """As in torch; but a base-model that is frozen stays in eval mode, as far as it is by itself."""
        super().train(mode)
        if self.base_frozen:
            joined = min((submodel.first_unit for submodel in self._submodels()), default=len(self.units))
            for unit in self.units[:joined]:
                unit.eval()
            for module in (*self.units.modules(), *self.head.modules()):
                if isinstance(module, SharedBatchNorm):
                    module.norms[0].eval()
                elif module._buffers:  # they are those of all models
                    module.training = False
        return self

    def preprocess(self, image: "Image") -> Tensor:
        """A PIL image to the normalised tensor (C, H, W) that every model takes."""
        return preprocess(image, self.task)


def _like_weights(features: Tensor, unit: nn.Module) -> Tensor:
    """`features` in the memory format of the first conv of `unit`: a conv is slow where they differ."""
    for weight in unit.parameters():
        # A 1x1 kernel lies in every format alike, and so does one over a single channel.
        if weight.dim() == 4 and weight.shape[1] > 1 and weight.shape[2:] != (1, 1):
            by_channels = weight.is_contiguous(memory_format=torch.channels_last)
            return features.contiguous(
                memory_format=torch.channels_last if by_channels else torch.contiguous_format
            )
    return features


def _single(module: nn.Module, index: int) -> nn.Module:
    """A copy of the module tree that shares all tensors, with the BN statistics of one model."""
    if isinstance(module, SharedBatchNorm):
        return copy.copy(module.norms[index])
    view = copy.copy(module)
    view._modules = {name: child and _single(child, index) for name, child in module._modules.items()}
    return view
