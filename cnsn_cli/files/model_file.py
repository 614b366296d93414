"""Opening whatever holds models: a network, a detached model, or an exported ONNX file.

Whoever evaluates, times, exports or describes models opens their files here, and gets classifiers of one
protocol. No other module looks at the suffix of a file. Torch is imported with the first model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.metadata import Metadata, ModelRecord, read_metadata
from cnsn_cli.files.tensor_file import Header, read_header
from cnsn_cli.task import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cnsn_cli.network.model import Model
    from cnsn_cli.network.network import Cnsn

ONNX = ".onnx"


class Classifier(Protocol):
    """A model with a name, a task and logits, whatever computes them.

    `runtime` is the library that computes. A call takes what `inputs` returns; nobody checks its logits.
    """

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    @property
    def runtime(self) -> str: ...

    def inputs(self, pixels: "Tensor") -> "Tensor":
        """What the model takes, from pixels uint8 (N, C, H, W)."""

    def __call__(self, inputs: "Tensor") -> "Tensor": ...

    def logits(self, pixels: "Tensor") -> "Tensor":
        """Pixels uint8 (N, C, H, W) -> logits (N, classes). Raises CheckpointError where a file has none."""


@dataclass(frozen=True)
class ModelFile:
    """A file that was opened once. `models` are in the order of the records in `metadata`.

    `network` and `header` are those of a file of ours. An exported file has neither.
    """

    path: Path
    models: Sequence[Classifier]
    metadata: Metadata
    network: "Cnsn | Model | None" = None
    header: Header | None = None

    def find(self, name: str | None) -> Classifier:
        """The model `base`, `submodel0` or its number; without a name the first, which is the base-model.

        Raises CheckpointError where there is no such model.
        """
        return self.models[self.metadata.models.index(self.record(name))]

    def record(self, name: str | None) -> ModelRecord:
        """What the metadata say of a model, found like `find`."""
        return self.metadata.models[0] if name is None else self.metadata.find(name)


def open_file(path: Path, device: "torch.device | None" = None, threads: int = 0) -> ModelFile:
    """The models in a file, in eval mode: on `device`, laid out for many images; else on the CPU, for a few.

    An exported model computes on the CPU whatever `device` is, with `threads`, by default one a core. Raises
    CheckpointError, and for ONNX files ExtraError.
    """
    if path.suffix == ONNX:
        from cnsn_cli.files.onnx_model import OnnxModel

        model = OnnxModel(path, threads)
        return ModelFile(path, [model], model.metadata)
    network, metadata, header = open_weights(path)
    if device is not None:
        from cnsn_cli.network.memory_format import place

        network = place(network, device)
    return ModelFile(path, network.models(), metadata, network, header)


def open_weights(path: Path) -> "tuple[Cnsn | Model, Metadata, Header]":
    """A network to compute with, its metadata and its header.

    Raises CheckpointError, also for an exported file, whose weights PyTorch does not read.
    """
    if path.suffix == ONNX:
        raise CheckpointError(f"{path} is exported already: name the file that it was made of")
    from cnsn_cli.files.checkpoint import open_network

    return open_network(path)


def read_info(path: Path) -> Metadata:
    """What a file says of its models, without a look at their weights. Raises like `open_file`."""
    if path.suffix == ONNX:
        from cnsn_cli.files.onnx_model import OnnxModel

        return OnnxModel(path).metadata
    return read_metadata(path, read_header(path))
