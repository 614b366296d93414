"""Detached models whose tensors change: BN statistics recomputed, BN folded into convs, two-byte weights.

`deploy.detach` calls this module for BN, `cnsn detach --dtype` for two-byte weights. A file is read once; all
else happens in memory. This module does not know how bytes are copied.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from cnsn_cli.choices import Half
from cnsn_cli.data.datasets import load_recorded
from cnsn_cli.data.split import Split
from cnsn_cli.deploy.changes import Changes, Recalibration
from cnsn_cli.deploy.comparison import Comparison, compare, remeasured
from cnsn_cli.deploy.copying import check_size, copied_size, detached_metadata, kept_pieces, read_whole
from cnsn_cli.errors import DataError
from cnsn_cli.evaluation.accuracy import ModelResult, evaluate
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.files.checkpoint import Opened, file_size, read_network, save
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.files.tensor_file import TensorFile
from cnsn_cli.files.writer import check_output
from cnsn_cli.network.dtypes import HALVES, cast_weights
from cnsn_cli.network.folding import check_equal, fold
from cnsn_cli.network.memory_format import for_many_images
from cnsn_cli.network.model import Model
from cnsn_cli.network.recalibration import recalibrated
from cnsn_cli.stages import counted, stage


def detach_recomputed(
    file: TensorFile, submodel: str, output: Path, force: bool, changes: Changes
) -> Metadata:
    """Write one model of an open file with `changes`. The caller has checked `output`."""
    ((_, metadata),) = recomputed_one_by_one(file, {output: submodel}, force, changes)
    return metadata


def recomputed_one_by_one(
    file: TensorFile, outputs: Mapping[Path, str], force: bool, changes: Changes
) -> Iterator[tuple[Path, Metadata]]:
    """Write models to `outputs`, path -> name, and yield after each. The network is read once."""
    with stage(f"opening {file.path.name}"):
        opened = read_network(file)
    for output, name in outputs.items():
        model, metadata = _recomputed(opened, file, name, changes)
        yield output, save(output, model, metadata, force)


def half_from(
    file: TensorFile, submodel: str, output: Path, dtype: Half, force: bool, changes: Changes
) -> tuple[Metadata, Comparison]:
    """Like `deploy.detach.detach_from`, with weights of two bytes. Loading makes them float32 again.

    Returns the metadata of the new file, and the comparison with float32. Both versions are evaluated on the
    test images of `changes.data`, by default those of the network's own data set. If its own images are gone,
    accuracy is unknown. Raises the errors of `detach`, DataError if `changes.data` does not exist,
    CheckpointError if a weight is too large for `dtype`.
    """
    whole = read_whole(file)
    record = whole.find(submodel)
    check_output(output, force, file.path)
    with stage(f"opening {file.path.name}"):
        opened = read_network(file)
    model, metadata = _recomputed(opened, file, submodel, changes)
    size = file_size(model, metadata) if changes.any else copied_size(file.header, whole, record)
    half = cast_weights(copy.deepcopy(model), HALVES[dtype])
    tensor_bytes = sum(tensor.numel() * tensor.element_size() for tensor in half.state_dict().values())
    rounded = cast_weights(copy.deepcopy(half), torch.float32)
    split = _test_images(metadata, changes)
    results = _results(split, model, rounded)
    own = results[1] if results and changes.data.data is None else None
    metadata = save(output, half, remeasured(metadata, dtype, tensor_bytes, own), force)
    sizes = size, output.stat().st_size
    return metadata, compare((model, rounded), sizes, results, len(split) if split else 0)


def _recomputed(opened: Opened, file: TensorFile, submodel: str, changes: Changes) -> tuple[Model, Metadata]:
    """One model of an open file with `changes` made, and its metadata."""
    network, whole, header = opened
    record = whole.find(submodel)
    check_size(file, record, kept_pieces(header, whole, record))
    model = network.model(record.name)
    model.width = 1.0  # its file holds an ordinary model of the narrow architecture
    metadata = detached_metadata(header, whole, record)
    if changes.recalibrate:
        train = load_recorded("train", metadata.task, metadata.origin, changes.data).split
        old = model
        model, metadata = _with_new_statistics(model, metadata, train, changes.recalibrate)
        _measure_both(old, model, metadata, changes)
    return _folded(model, metadata) if changes.fold_bn else (model, metadata)


def _with_new_statistics(
    model: Model, metadata: Metadata, train: Split, batches: int
) -> tuple[Model, Metadata]:
    (model,) = recalibrated([model], train, batches)
    # The recorded accuracy and loss were measured with the old statistics.
    record = metadata.models[0].model_copy(update={"accuracy": None, "loss": None})
    return model, metadata.model_copy(update={"recalibrated": batches, "models": [record]})


def _measure_both(old: Model, new: Model, metadata: Metadata, changes: Changes) -> None:
    """Tell the watcher how accurate a model is with old and with new statistics, if there are test images."""
    if changes.watch and (split := _test_images(metadata, changes)):
        before, after = (result.accuracy for result in _results(split, old, new))
        changes.watch(Recalibration(new.name, len(split), before, after))


def _folded(model: Model, metadata: Metadata) -> tuple[Model, Metadata]:
    folded = fold(model)
    check_equal(model, folded)
    record = metadata.models[0].model_copy(update=vars(model_costs(folded)[0]))
    return folded, metadata.model_copy(update={"folded": True, "models": [record]})


def _test_images(metadata: Metadata, changes: Changes) -> Split | None:
    """The test images; None if no data set is named and the network's own one is gone."""
    try:
        return load_recorded("test", metadata.task, metadata.origin, changes.data).split
    except DataError:
        if changes.data.data is not None:
            raise
        return None


def _results(split: Split | None, *models: Model) -> list[ModelResult]:
    if split is None:
        return []
    placed = [for_many_images(copy.deepcopy(model)) for model in models]
    with stage(f"evaluating on {counted(len(split), 'test image')}"):
        return [result for model in placed for result in evaluate(model, split)]
