"""Weights to start training from: published weights of the original network, or weights in a file.

`setup` calls this module before a new run. It does not know exits and sub-models.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.tracing.units import Segment
from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.checkpoint import read_plain
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.task import Task

PART = re.compile(r"^(units\.\d+|head)\.")


@dataclass
class Start:
    """`weights` under the names of the original network, or under the names of the backbone made from it.

    Error messages call them `source`. After `fill`, `drawn` names the weights that the backbone did not get
    because it has another number of classes: they stay as they were drawn at random.
    """

    weights: dict[str, Tensor]
    source: str
    drawn: tuple[str, ...] = ()

    def fill(self, backbone: Backbone, classes: int) -> None:
        """Copy the weights into `backbone`, except the weights of a classifier for other classes.

        Weights that the backbone does not have are ignored. Raises CheckpointError if one that it has is
        missing or has another shape.
        """
        drawn = []
        for name, tensor in self._wanted(backbone).items():
            if name not in self.weights:
                if name.endswith("num_batches_tracked"):  # old files have none
                    continue
                raise CheckpointError(f"{self.source}: weights of another network, without {name!r}")
            found = self.weights[name]
            if _of_other_classes(found, tensor, classes):
                drawn.append(name)
            elif found.shape != tensor.shape:
                shapes = f"{tuple(found.shape)}, not {tuple(tensor.shape)}"
                raise CheckpointError(
                    f"{self.source}: weights of another network, {name!r} has shape {shapes}"
                )
            else:
                tensor.copy_(found)
        self.drawn = tuple(drawn)

    def _wanted(self, backbone: Backbone) -> dict[str, Tensor]:
        whole = nn.ModuleDict({"units": backbone.units, "head": backbone.head})
        own = whole.state_dict()
        if not isinstance(backbone.head, Segment):
            return own
        constants = {
            f"{name}.{constant}"
            for name, part in whole.named_modules()
            if isinstance(part, Segment)
            for constant in part.constants__
        }
        original = {PART.sub("", name): tensor for name, tensor in own.items() if name not in constants}
        return max(original, own, key=lambda names: len(names.keys() & self.weights.keys()))


def _of_other_classes(found: Tensor, wanted: Tensor, classes: int) -> bool:
    if not found.dim() or found.dim() != wanted.dim():
        return False
    return wanted.shape[0] == classes != found.shape[0] and found.shape[1:] == wanted.shape[1:]


def from_file(path: Path) -> Start:
    """The tensors of a safetensors file, which need not be from cnsn. Raises CheckpointError."""
    read_header(path)  # checks the limits of a file
    return Start(read_plain(path), str(path))


def from_publisher(arch: Architecture, task: Task) -> Start:
    """The published weights of an architecture. Raises ArchitectureError if they cannot be had."""
    return Start(arch.pretrained(task), f"pretrained weights of {arch.text}")
