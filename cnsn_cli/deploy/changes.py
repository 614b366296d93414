"""What is recomputed in a detached model, as a value that `detach` and `recompute` pass on."""

from collections.abc import Callable
from typing import NamedTuple

from cnsn_cli.data.origin import RECORDED, Origin


class Recalibration(NamedTuple):
    """The accuracy (0..1) of a model on `images` test images, `before` and `after` recalibration."""

    name: str
    images: int
    before: float
    after: float


class Changes(NamedTuple):
    """The arguments of `detach` that change tensors, and the images that this takes.

    `watch` is called with what recalibration does to accuracy; without it, accuracy is not measured.
    """

    fold_bn: bool = False
    recalibrate: int = 0
    data: Origin = RECORDED
    watch: Callable[[Recalibration], object] | None = None

    @property
    def any(self) -> bool:
        return self.fold_bn or self.recalibrate > 0


UNCHANGED = Changes()
