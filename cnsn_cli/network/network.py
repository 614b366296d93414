"""The network: a base-model and its sub-models, all logits from one forward pass.

    images --+-------------> unit 0 -> unit 1 --> join -> unit 2 -> ... -> join -> unit 7 -> head -> split
             |                                      ^                        ^                        |
             +-> step-down of submodel0 ------------+                        |         base, submodel0, ...
             +-> step-down of submodel1 -------------------------------------+

Join: the features of a sub-model are appended to the batch. From there on the batch holds N images of each
model that has joined.

`training.setup` and `files.checkpoint` build networks; every command uses them. A network does not know how
it is trained, saved or measured.
"""

from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.detach_points import DetachPoint, choose_exits, detach_points
from cnsn_cli.choices import BatchNormMode, StepDown
from cnsn_cli.data.pixels import preprocess
from cnsn_cli.network.batch_norm import SharedBatchNorm, fresh_statistics
from cnsn_cli.network.memory_format import like_weights
from cnsn_cli.network.model import Model, check_name
from cnsn_cli.network.step_down import STEP_DOWNS
from cnsn_cli.network.views import view_of_model, with_statistics
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from PIL.Image import Image

Network = TypeVar("Network", bound="Cnsn | Model")


class Private(nn.Module):
    """The tensors of one sub-model alone: its step-down conv, and its BN statistics in the shared layers."""

    def __init__(self, name: str, point: DetachPoint, step_down: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.step_down = step_down
        self.drops = point.drops
        self.first_unit = point.unit

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

    backbone: the units and the head. The network takes them over; do not use them for anything else.
    exits: the numbers of convs that the sub-models drop, ascending; () for the base-model alone.
    task: the classes, and the size and channels of the images.
    bn: `private` gives each model its own BN statistics, `shared` gives all models one set.
    step_down: the kind of the step-down convs, `patch` (one conv) or `stem` (several 3x3 convs).

    Raises DetachPointError if `exits` are not legal detach points, ArchitectureError for too small images.
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
        self.base_frozen = False
        self.exits = exits
        points = choose_exits(detach_points(backbone, task.image_shape), exits)
        self.units = nn.Sequential(*backbone.units)  # numbered, whatever their names were
        self.head = backbone.head
        build = STEP_DOWNS[step_down]
        self.submodels = nn.ModuleList(
            Private(f"submodel{index}", point, build(task.image_shape, point.shape))
            for index, point in enumerate(points)
        )
        self._share_norms()

    def _share_norms(self) -> None:
        for name, norm in list(self.named_modules()):
            part, _, rest = name.partition(".")
            if part not in ("units", "head") or not isinstance(norm, _BatchNorm):
                continue
            unit = int(rest.split(".")[0]) if part == "units" else len(self.units)
            passing = [private for private in self._privates() if private.first_unit <= unit]
            statistics = [norm if self.bn == "shared" else fresh_statistics(norm) for _ in passing]
            if self.bn == "private":
                for private, own in zip(passing, statistics, strict=True):
                    private.keep(name, own)
            if passing:
                norms = [norm, *(with_statistics(norm, own) for own in statistics)]
                self.set_submodule(name, SharedBatchNorm(norms))

    def _privates(self) -> list[Private]:
        return [cast(Private, private) for private in self.submodels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, C, H, W) -> logits (N, classes) of the base-model, sub-model 0, 1, ...

        The units run once, in order. Where a sub-model joins, its step-down features are appended to the
        batch. All layers but BN treat samples independently, and BN layers normalise each model's slice by
        itself: the logits are those of separate passes.
        """
        # Step-downs run first, because the first unit of a plug-in may change the images in place.
        joining = {private.first_unit: private.step_down(images) for private in self._privates()}
        features = images
        for index, unit in enumerate(self.units):
            if index in joining:
                features = torch.cat([features, joining[index]])
            features = unit(like_weights(features, unit))
        logits: Tensor = self.head(features)
        return list(logits.chunk(1 + len(self.submodels)))

    @property
    def base(self) -> Model:
        """The base-model: a view, as `model` returns it."""
        return self.model("base")

    def models(self) -> list[Model]:
        """The base-model, sub-model 0, 1, ...: views, as `model` returns them."""
        return [self.model(name) for name in self._names()]

    def model(self, name: str) -> Model:
        """The model called `base`, `submodel0`, ...: a view, which shares its tensors with this network.

        Raises CnsnError with the valid names.
        """
        names = self._names()
        check_name(name, names)
        index = names.index(name)
        private = self._privates()[index - 1] if index else None
        units = {
            number: view_of_model(unit, index)
            for number, unit in self.units._modules.items()  # named_children skips repeated modules
            if unit is not None and (private is None or int(number) >= private.first_unit)
        }
        step_down = view_of_model(private.step_down, index) if private else None
        drops = private.drops if private else 0
        model = Model(name, drops, step_down, units, view_of_model(self.head, index), self.task)
        return model.train(self.training)

    def _names(self) -> list[str]:
        return ["base", *(private.name for private in self._privates())]

    def freeze_base(self) -> None:
        """From now on training changes only the step-down convs and the BN statistics of the sub-models."""
        self.base_frozen = True
        for part in (self.units, self.head):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Cnsn":
        """Like torch's `train`, but a frozen base-model stays in eval mode: the units before the first exit,
        and its BN statistics everywhere.
        """
        super().train(mode)
        if self.base_frozen:
            joined = min((private.first_unit for private in self._privates()), default=len(self.units))
            for unit in self.units[:joined]:
                unit.eval()
            for module in (*self.units.modules(), *self.head.modules()):
                if isinstance(module, SharedBatchNorm):
                    module.norms[0].eval()
                elif module._buffers:  # statistics that all models share
                    module.training = False
        return self

    def preprocess(self, image: "Image") -> Tensor:
        """A PIL image to the normalised tensor (C, H, W) that every model takes."""
        return preprocess(image, self.task)
