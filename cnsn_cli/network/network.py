"""The network: a base-model and its sub-models, all logits from one forward pass.

    images --+--> units and head, all channels    --> base, submodel0 (k=2), submodel1 (k=7)
             |      | leading blocks of the weights
             |      v
             +--> units and head, half of them    --> submodel2 (@0.5), submodel3 (7@0.5)

Models of one width share one joint pass (`joint_pass`). Narrow models take their weights from the base-model
(`narrow`).

`training.setup` and `files.checkpoint` build networks; every command uses them. A network does not know how
it is trained, saved or measured.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from torch import Tensor, nn

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.detach_points import DetachPoint, choose_points, detach_points
from cnsn_cli.choices import BatchNormMode, StepDown
from cnsn_cli.data.pixels import preprocess
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.exits import Exit, check_statistics, read_exits, widths
from cnsn_cli.network.batch_norm import SharedBatchNorm
from cnsn_cli.network.joint_pass import Private, run_joined, share_norms
from cnsn_cli.network.model import Model, check_name
from cnsn_cli.network.narrow import Narrow
from cnsn_cli.network.step_down import STEP_DOWNS
from cnsn_cli.network.views import view_of_model
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from PIL.Image import Image

Network = TypeVar("Network", bound="Cnsn | Model")


class Cnsn(nn.Module):
    """A base-model with a sub-model for each of the `exits`; all weights but the step-down convs are shared.

    Arguments:
        backbone: the units and the head. The network takes them over; do not use them for anything else.
        exits: the sub-models, such as (2, 7, "@0.5", "7@0.5"); () for the base-model alone. Widths fall, and
            within one width depths ascend.
        task: the classes, and the size and channels of the images.
        bn: `private` gives each model its own BN statistics, `shared` gives all models one set.
        step_down: the kind of the step-down convs, `patch` (one conv) or `stem` (several 3x3 convs).
        narrow: the backbone of each width below 1; only the shapes of its tensors count.

    Raises DetachPointError if `exits` are not legal, ArchitectureError for too small images, or if a width
    has no backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        exits: Iterable[int | str | Exit],
        task: Task,
        bn: BatchNormMode = "private",
        step_down: StepDown = "patch",
        narrow: Mapping[float, Backbone] | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.bn = bn
        self.base_frozen = False
        self.exits = read_exits(exits)
        check_statistics(self.exits, bn)
        backbones = {1.0: backbone, **(narrow or {})}
        build, points = STEP_DOWNS[step_down], _points(self.exits, backbones, task)
        self.units = nn.Sequential(*backbone.units)  # numbered, whatever their names were
        self.head = backbone.head
        self.submodels = nn.ModuleList(
            Private(number, exit, point, build(task.image_shape, point.shape) if exit.drops else None)
            for number, (exit, point) in enumerate(zip(self.exits, points, strict=True), 1)
        )
        share_norms(self, self._privates(1.0), private=bn == "private")
        # A tuple, because torch would register the layers of an attribute. They have no tensors to save.
        self.narrow = tuple(
            Narrow(width, backbones[width], self._privates(width), self) for width in widths(self.exits)
        )
        every = (module for part in (self, *self.narrow) for module in part.modules())
        self.shared_norms = tuple(module for module in every if isinstance(module, SharedBatchNorm))
        self.chosen = tuple(self._privates())

    def _privates(self, width: float | None = None) -> list[Private]:
        """The private parts of all sub-models, or of those of one width."""
        every = [cast(Private, private) for private in self.submodels]
        return [private for private in every if width in (None, private.width)]

    def _narrow_of(self, private: Private) -> Narrow | None:
        return next((narrow for narrow in self.narrow if narrow.width == private.width), None)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, C, H, W) -> logits (N, classes) of the base-model, sub-model 0, 1, ...

        After `choose`, sub-models that are not chosen are left out.
        """
        # All models enter before the first unit runs: that of a plug-in may change the images in place.
        entered = {private: private.enter(images) for private in self.chosen}
        entering = [(private.first_unit, entered[private]) for private in entered if private.width == 1]
        logits = run_joined(self.units._modules, self.head, [(0, images), *entering])
        for narrow in self.narrow:
            if own := {private: entered[private] for private in entered if private in narrow.privates}:
                logits += narrow.logits(own)
        return logits

    def choose(self, numbers: Collection[int]) -> None:
        """From now on `forward` computes the base-model, and of the sub-models those with these `numbers`.

        The numbers are positions in `models()`. Sub-models that are left out get no gradients.
        """
        self.chosen = tuple(private for private in self._privates() if private.number in numbers)
        passing = {0, *(private.number for private in self.chosen)}
        for norm in self.shared_norms:
            norm.choose(passing)

    @property
    def base(self) -> Model:
        """The base-model: a view, as `model` returns it."""
        return self.model("base")

    def models(self) -> list[Model]:
        """The base-model, sub-model 0, 1, ..., as `model` returns them."""
        return [self.model(name) for name in self._names()]

    def model(self, name: str) -> Model:
        """The model called `base`, `submodel0`, ...: a view, which shares its tensors with this network.

        A narrow model shares only its step-down conv and its BN statistics; its weights are copies of blocks,
        so take it again after a training step. Raises CnsnError with the valid names.
        """
        names = self._names()
        check_name(name, names)
        index = names.index(name)
        private = self._privates()[index - 1] if index else None
        if private and (narrow := self._narrow_of(private)):
            return narrow.model(narrow.privates.index(private), self.task).train(self.training)
        units = {
            number: view_of_model(unit, index)
            for number, unit in self.units._modules.items()  # named_children skips repeated modules
            if unit is not None and (private is None or int(number) >= private.first_unit)
        }
        step_down = view_of_model(private.step_down, index) if private and private.step_down else None
        drops = private.drops if private else 0
        model = Model(name, drops, step_down, units, view_of_model(self.head, index), self.task)
        return model.train(self.training)

    def _names(self) -> list[str]:
        return ["base", *(private.name for private in self._privates())]

    def shared_with_base(self, name: str) -> list[tuple[nn.Parameter, tuple[slice, ...]]]:
        """The base-model's parameters that the sub-model `name` computes with, and which part of each."""
        (private,) = (private for private in self._privates() if private.name == name)
        if narrow := self._narrow_of(private):
            blocks = narrow.blocks_of(private)
            return [(cast(nn.Parameter, block.source), block.slices) for block in blocks]
        parts = nn.ModuleDict({"units": self.units, "head": self.head}).named_parameters()
        return [(parameter, ()) for name, parameter in parts if private.keeps(name)]

    def freeze_base(self) -> None:
        """From now on training changes only the step-down convs and the BN statistics of the sub-models.

        Raises ArchitectureError if there are narrow sub-models, which would have nothing to train.
        """
        if self.narrow:
            raise ArchitectureError(
                f"a frozen base-model has no weights to train for the width @{self.narrow[0].width:g}: "
                "give detach points alone"
            )
        self.base_frozen = True
        for part in (self.units, self.head):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Cnsn":
        """Like torch's `train`, but a frozen base-model stays in eval mode: the units before the first exit,
        and its BN statistics everywhere.
        """
        super().train(mode)
        for narrow in self.narrow:
            narrow.train(mode)
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


def _points(exits: Iterable[Exit], backbones: Mapping[float, Backbone], task: Task) -> list[DetachPoint]:
    """The place where each sub-model begins, in the backbone of its width."""
    found: dict[Exit, DetachPoint] = {}  # the last line puts them into the order of `exits`
    for width in dict.fromkeys(exit.width for exit in exits):
        if width not in backbones:
            raise ArchitectureError(f"the width @{width:g} has no backbone: give narrow={{{width:g}: ...}}")
        points = detach_points(backbones[width], task.image_shape)
        if width != 1:
            points = [DetachPoint(0, 0, task.image_shape), *points]
        drops = [exit.drops for exit in exits if exit.width == width]
        found |= {Exit(point.drops, width): point for point in choose_points(points, drops)}
    return [found[exit] for exit in exits]
