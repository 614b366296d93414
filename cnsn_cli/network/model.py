"""One model by itself: the content of a detached file, or one model of a whole network.

Evaluation, prediction and deployment use it; `Cnsn.model` and `files.checkpoint` make it. A model does not
know whether it shares its tensors with a whole network.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cnsn_cli.backbones.meta import blank_images, run_blank
from cnsn_cli.data.pixels import normalise, preprocess
from cnsn_cli.device import exact_fp32
from cnsn_cli.errors import CnsnError
from cnsn_cli.network.memory_format import like_weights
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from PIL.Image import Image


class Model(nn.Module):
    """The step-down conv (none in the base-model), the kept units and the head.

    Units keep their numbers from the backbone, also in the names of their tensors. `name` is `base`,
    `submodel0`, ...; `drops` is the number of conv layers that the step-down conv replaces. `width` is the
    share of the channels of the network that the model is part of.
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
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.name = name
        self.drops = drops
        self.width = width
        self.step_down = step_down or nn.Identity()
        self.units = nn.Sequential(OrderedDict(units))
        self.head = head
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, classes)."""
        features = self.step_down(images)
        for unit in self.units:
            features = unit(like_weights(features, unit))
        logits: Tensor = self.head(features)
        return logits

    def unit_shapes(self) -> list[tuple[int, ...]]:
        """The shape (c, h, w) of the features that each unit takes."""
        shapes = []
        features = run_blank(self.step_down, blank_images(self.task.image_shape, self))
        for unit in self.units:
            shapes.append(tuple(features.shape[1:]))
            features = run_blank(unit, features)
        return shapes

    @property
    def first_unit(self) -> int:
        """The number of the first unit that this model keeps."""
        return int(next(iter(self.units._modules)))

    def inputs(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (N, C, H, W) -> normalised images, on the device of the model."""
        return normalise(pixels.to(next(self.parameters()).device), self.task)

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (N, C, H, W) -> logits (N, classes), on the device of the model, in full fp32."""
        with exact_fp32():
            logits: Tensor = self(self.inputs(pixels))
        return logits

    def models(self) -> list["Model"]:
        """A list of this model alone, so that a detached model can be handled like a whole network."""
        return [self]

    def model(self, name: str) -> "Model":
        """This model, if `name` is its name. Raises CnsnError otherwise."""
        check_name(name, [self.name])
        return self

    def preprocess(self, image: "Image") -> Tensor:
        """A PIL image to the normalised tensor (C, H, W) that the model takes."""
        return preprocess(image, self.task)


def check_name(name: str, names: Sequence[str]) -> None:
    """Raises CnsnError with the valid names unless `name` is one of them."""
    if name not in names:
        raise CnsnError(f"no model {name!r}: choose {', '.join(names)}")
