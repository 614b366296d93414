"""Opening whatever holds models: a network, a detached model, or an exported ONNX file."""

from pathlib import Path

from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import Metadata, read_metadata
from cnsn_cli.files.onnx_model import SUFFIX, OnnxModel
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.network import Cnsn, Model

Classifier = Model | OnnxModel


def open_file(path: Path, threads: int = 0) -> tuple[Cnsn | Model | OnnxModel, Metadata]:
    """The network in a file, in eval mode on the CPU, and what the file says of it.

    `threads` is for ONNX Runtime, which must know before. Raises CheckpointError, and for ONNX ExtraError.
    """
    if path.suffix == SUFFIX:
        model = OnnxModel(path, threads)
        return model, model.metadata
    return load(path), read_metadata(path, read_header(path))


def open_model(path: Path, name: str | None = None) -> tuple[Classifier, Metadata]:
    """One model of a file: `base`, `submodel0` or its number; by default the first, which is the base-model.

    Raises like `open_file`, and CheckpointError where there is no such model.
    """
    network, metadata = open_file(path)
    models = network.models()
    record = metadata.models[0] if name is None else metadata.find(name)
    return models[metadata.models.index(record)], metadata
