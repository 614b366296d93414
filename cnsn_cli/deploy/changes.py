"""What is recomputed in a detached model, as a value that `detach` and `recompute` pass on."""

from pathlib import Path
from typing import NamedTuple


class Changes(NamedTuple):
    """The arguments of `detach` that change tensors, and the images that this takes."""

    fold_bn: bool = False
    recalibrate: int = 0
    data: str | None = None
    data_dir: str | Path = "data"

    @property
    def any(self) -> bool:
        return self.fold_bn or self.recalibrate > 0


UNCHANGED = Changes()
