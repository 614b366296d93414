"""Writing models of a network as files of their own: which model, from which file, to which file.

`cnsn detach` and Python users start here. `deploy.copying` copies bytes without torch; `deploy.recompute`
changes tensors with torch. A file is opened once, for choosing a model and for writing it. This module does
not know the file format.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cnsn_cli.data.origin import Origin
from cnsn_cli.deploy.budget import Budget, Candidate, Choice, choose
from cnsn_cli.deploy.changes import UNCHANGED, Changes
from cnsn_cli.deploy.copying import copy_model, read_whole
from cnsn_cli.errors import OutputError
from cnsn_cli.files.hub import path_of
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.files.tensor_file import TensorFile
from cnsn_cli.files.writer import check_output, filling


def detach(
    checkpoint: str | Path,
    submodel: str,
    output: str | Path,
    force: bool = False,
    fold_bn: bool = False,
    recalibrate: int = 0,
    data: str | None = None,
    data_dir: str | Path = "data",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Metadata:
    """Write one model of a network as a file of its own, and return the metadata of that file.

    Arguments:
        checkpoint: a whole network, as `cnsn train` writes it.
        submodel: `base`, `submodel0`, `submodel1`, ..., or the number of a sub-model.
        output: the file to write.
        force: replace `output` if it exists.
        fold_bn: make BN part of the convs before it; a BN whose input is not the output of a conv stays.
        recalibrate: recompute the BN statistics from this number of batches of training images; 0 keeps them.
        data: the data set of these images; None: the one that the network was trained on.
        data_dir: the folder of downloaded data sets.
        image_column: the column of images of a table; None: the usual one, or that of the training.
        label_column: the same for the classes.

    Without `fold_bn` and `recalibrate`, only the bytes of the model are read, and copied unchanged. With
    either, torch is imported and the whole file is read. Raises CheckpointError if there is no such model or
    the checkpoint is damaged, DataError for the images, OutputError if `output` may not be written.
    """
    changes = Changes(fold_bn, recalibrate, Origin(data, data_dir, image_column, label_column))
    with TensorFile(path_of(checkpoint)) as file:
        return detach_from(file, submodel, Path(output), force, changes)


def detach_from(
    file: TensorFile, submodel: str, output: Path, force: bool = False, changes: Changes = UNCHANGED
) -> Metadata:
    """Like `detach`, from an open file."""
    whole = read_whole(file)
    record = whole.find(submodel)
    check_output(output, force, file.path)
    if changes.any:
        from cnsn_cli.deploy.recompute import detach_recomputed

        return detach_recomputed(file, record.name, output, force, changes)
    return copy_model(file, whole, record, output, force)


def detach_all(
    checkpoint: str | Path, folder: str | Path, force: bool = False, changes: Changes = UNCHANGED
) -> dict[Path, Metadata]:
    """Write every model of a network as `<name>.safetensors` into `folder`. The checkpoint is opened once.

    Returns path -> metadata of each new file. Raises the errors of `detach`.
    """
    folder = Path(folder)
    with TensorFile(path_of(checkpoint)) as file:
        outputs = {folder / f"{model.name}.safetensors": model.name for model in read_whole(file).models}
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file: --all writes into a folder")
        for output in outputs if folder.is_dir() else ():
            check_output(output, force, file.path)
        found = {}
        with filling(folder) as written:
            for output, metadata in _one_by_one(file, outputs, force, changes):
                found[output] = metadata
                written.append(output)
        return found


def _one_by_one(
    file: TensorFile, outputs: Mapping[Path, str], force: bool, changes: Changes
) -> Iterator[tuple[Path, Metadata]]:
    if changes.any:
        from cnsn_cli.deploy.recompute import recomputed_one_by_one

        yield from recomputed_one_by_one(file, outputs, force, changes)
        return
    for output, name in outputs.items():
        yield output, detach_from(file, name, output, force)


def choose_model(checkpoint: str | Path, budget: Budget) -> Choice:
    """The most accurate model of a network within the budget.

    If the budget limits latency, the models are timed on this machine: one image, one thread. Raises
    BudgetError if no model fits.
    """
    with TensorFile(path_of(checkpoint)) as file:
        return choose_from(file, budget)


def choose_from(file: TensorFile, budget: Budget) -> Choice:
    """Like `choose_model`, from an open file."""
    models = read_whole(file).models
    latencies = _measured_latencies(file) if "latency" in budget else {}
    candidates = [Candidate(m.name, m.macs, m.bytes, m.accuracy, latencies.get(m.name)) for m in models]
    return choose(candidates, budget)


def _measured_latencies(file: TensorFile) -> dict[str, float]:
    """Name of a model -> seconds for one image."""
    from cnsn_cli.evaluation.latency import latencies
    from cnsn_cli.files.checkpoint import read_network

    return latencies(read_network(file).network.models())
