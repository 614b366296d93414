"""Detached models with two bytes a weight."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cnsn_cli.choices import Half
from cnsn_cli.data.datasets import load_recorded
from cnsn_cli.data.split import Split
from cnsn_cli.deploy.comparison import Comparison, compare, remeasured
from cnsn_cli.deploy.detach import check_target, detach
from cnsn_cli.errors import DataError
from cnsn_cli.evaluation.accuracy import ModelResult, evaluate
from cnsn_cli.files.checkpoint import load, save
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.network.dtypes import HALVES, cast_weights
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Model


def detach_half(
    checkpoint: str | Path,
    submodel: str,
    output: str | Path,
    dtype: Half,
    force: bool = False,
    fold_bn: bool = False,
    recalibrate: int = 0,
    data: str | None = None,
    data_dir: str | Path = "data",
) -> tuple[Metadata, Comparison]:
    """Like `detach`, with weights of two bytes; they are float32 again when the file is loaded.

    Both versions are evaluated on the test images of `data`, by default of what the network was trained on;
    where these are gone, accuracy is not known. Raises like `detach`, DataError for a `data` that is not
    there, CheckpointError where weights are too large for `dtype`.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    check_target(checkpoint, output, force)
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "float32.safetensors"
        metadata = detach(checkpoint, submodel, whole, False, fold_bn, recalibrate, data, data_dir)
        model, rounded = _model(whole), cast_weights(_model(whole), HALVES[dtype])
        size = sum(tensor.numel() * tensor.element_size() for tensor in rounded.state_dict().values())
        rounded = cast_weights(rounded, torch.float32)
        split = _images(metadata, data, data_dir)
        results = _results(split, model, rounded)
        own = results[1] if results and data is None else None
        metadata = save(output, cast_weights(rounded, HALVES[dtype]), remeasured(metadata, dtype, size, own))
        return metadata, compare((whole, output), results, len(split) if split else 0)


def _model(path: Path) -> Model:
    model = load(path)
    assert isinstance(model, Model)
    return model


def _images(metadata: Metadata, data: str | None, data_dir: str | Path) -> Split | None:
    try:
        return load_recorded("test", metadata.task, metadata.data, data, data_dir)[0]
    except DataError:
        if data is not None:
            raise
        return None


def _results(split: Split | None, *models: Model) -> list[ModelResult]:
    if split is None:
        return []
    return [result for model in models for result in evaluate(place(model, torch.device("cpu")), split)]
