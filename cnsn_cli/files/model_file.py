"""Opening any file that holds models: a whole network, a detached model, or an exported ONNX file.

Code that evaluates, times, exports or describes models opens their files here, and gets classifiers of one
protocol. No other module tells files with models apart by their suffix. Torch is imported with the first
model. This module does not know what is done with the models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.metadata import Metadata, ModelRecord, read_metadata
from cnsn_cli.files.tensor_file import Header, read_header
from cnsn_cli.stages import stage
from cnsn_cli.task import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cnsn_cli.network.model import Model
    from cnsn_cli.network.network import Cnsn

ONNX = ".onnx"


class Classifier(Protocol):
    """A model with a name, a task and logits, computed by any library.

    `runtime` is the name of that library. A call takes the result of `inputs` and returns logits without a
    check; `logits` checks them.
    """

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    @property
    def runtime(self) -> str: ...

    def inputs(self, pixels: "Tensor") -> "Tensor":
        """Pixels uint8 (N, C, H, W) -> the tensor that the model takes."""

    def __call__(self, inputs: "Tensor") -> "Tensor": ...

    def logits(self, pixels: "Tensor") -> "Tensor":
        """Pixels uint8 (N, C, H, W) -> logits (N, classes). Raises CheckpointError if they are no logits."""


@dataclass(frozen=True)
class ModelFile:
    """A file that was opened once. `models` are in the order of the records in `metadata`.

    `network` and `header` are None for an exported file.
    """

    path: Path
    models: Sequence[Classifier]
    metadata: Metadata
    network: "Cnsn | Model | None" = None
    header: Header | None = None

    def find(self, name: str | None) -> Classifier:
        """The model called `base` or `submodel0`, or with the number `0`; None: the first model of the file.

        Raises CheckpointError if there is no such model.
        """
        return self.models[self.metadata.models.index(self.record(name))]

    def record(self, name: str | None) -> ModelRecord:
        """The metadata of the model that `find` returns."""
        return self.metadata.models[0] if name is None else self.metadata.find(name)


def is_exported(path: Path) -> bool:
    """Whether `path` names an ONNX file."""
    return path.suffix == ONNX


def open_file(path: Path, device: "torch.device | None" = None, threads: int = 0) -> ModelFile:
    """Open a file; its models are in eval mode.

    path: a whole network, a detached model, or an exported ONNX file.
    device: where models are, with weights laid out for large batches; None: on the CPU, for a few images.
        An exported model computes on the CPU in any case.
    threads: how many threads an exported model computes with; 0: one for each core.

    Raises CheckpointError, and ExtraError for an ONNX file if ONNX Runtime is not installed.
    """
    if is_exported(path):
        from cnsn_cli.files.onnx_model import OnnxModel

        with stage(f"opening {path.name}"):
            model = OnnxModel(path, threads)
        return ModelFile(path, [model], model.metadata)
    network, metadata, header = open_weights(path)
    if device is not None:
        from cnsn_cli.network.memory_format import place

        network = place(network, device)
    return ModelFile(path, network.models(), metadata, network, header)


def open_weights(path: Path) -> "tuple[Cnsn | Model, Metadata, Header]":
    """The network in a file, its metadata and its header.

    Raises CheckpointError, also for an exported file: PyTorch does not read its weights.
    """
    if is_exported(path):
        raise CheckpointError(f"{path} is exported already: name the file that it was exported from")
    from cnsn_cli.files.checkpoint import open_network

    with stage(f"opening {path.name}"):
        return open_network(path)


def read_info(path: Path) -> Metadata:
    """The metadata of a file, without reading its weights. Raises CheckpointError."""
    if is_exported(path):
        from cnsn_cli.files.onnx_texts import read_onnx_metadata

        return read_onnx_metadata(path)
    return read_metadata(path, read_header(path))
