"""Weights to start from: those of the original network, as published or from a file."""

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
    """`weights` by the names of the network that a backbone was made of, or of the backbone itself.

    `source` is what error messages call them. `drawn` are the names of those that a backbone did not get,
    because it has another number of classes.
    """

    weights: dict[str, Tensor]
    source: str
    drawn: tuple[str, ...] = ()

    def fill(self, backbone: Backbone, classes: int) -> None:
        """Copy the weights into `backbone`, except those of a classifier of another number of classes.

        Weights that it has no use for are ignored. Raises CheckpointError where one lacks or has another
        shape.
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
    """The tensors of a safetensors file, whoever wrote it. Raises CheckpointError."""
    read_header(path)  # holds it to the limits of a file
    return Start(read_plain(path), str(path))


def from_publisher(arch: Architecture, task: Task) -> Start:
    """What an architecture has been published with. Raises ArchitectureError where that cannot be had."""
    return Start(arch.pretrained(task), f"pretrained weights of {arch.text}")
