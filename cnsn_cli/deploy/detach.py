"""Taking one model out of a network's file. It reads only the bytes that it keeps, and needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnsn_cli.deploy.budget import Budget, Candidate, Choice, choose
from cnsn_cli.errors import CheckpointError, OutputError
from cnsn_cli.files.metadata import Metadata, ModelRecord, read_metadata
from cnsn_cli.files.tensor_file import Header, copy_tensors, read_header
from cnsn_cli.files.writer import check_output, replacing

if TYPE_CHECKING:
    from cnsn_cli.network.network import Model


def detach(
    checkpoint: str | Path,
    submodel: str,
    output: str | Path,
    force: bool = False,
    fold_bn: bool = False,
    recalibrate: int = 0,
    data: str | None = None,
    data_dir: str | Path = "data",
) -> Metadata:
    """Write the model `base`, `submodel0`, `submodel1`, ... of a network as a file of its own.

    A number stands for a sub-model. Only the bytes that are kept are read, and copied as they are. But these
    two take torch and read the whole file: `recalibrate` computes BN statistics anew, from so many batches of
    the training images in `data`, by default those that the network was trained on; `fold_bn` makes BN part
    of the convs before it. Returns the metadata of the new file. Raises CheckpointError where there is no
    such model or the checkpoint is damaged, DataError for the images, OutputError where `output` may not be
    written.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    header = read_header(checkpoint)
    whole = _read_whole(checkpoint, header)
    record = whole.find(submodel)
    check_target(checkpoint, output, force)
    names = kept_names(header, record)
    held = sum(header.entries[name].end - header.entries[name].start for name in names.values())
    if held != record.bytes:
        raise CheckpointError(
            f"{checkpoint} is damaged: {record.name} takes {held:,} bytes in it, "
            f"not the {record.bytes:,} that its metadata state"
        )
    metadata = detached_metadata(whole, header, record, names)
    if recalibrate or fold_bn:
        from cnsn_cli.files.checkpoint import load, save

        model = next(model for model in load(checkpoint).models() if model.name == record.name)
        if recalibrate:
            model, metadata = _recalibrated(model, metadata, recalibrate, data, data_dir)
        if fold_bn:
            model, metadata = _folded(model, metadata)
        return save(output, model, metadata)
    with replacing(output) as file:
        copy_tensors(checkpoint, header, names, file, metadata.to_json(), metadata.sha256)
    return metadata


def _read_whole(checkpoint: Path, header: Header) -> Metadata:
    metadata = read_metadata(checkpoint, header)
    if metadata.kind == "detached":
        raise CheckpointError(f"{checkpoint} is detached already: it holds {metadata.models[0].name} alone")
    return metadata


def check_target(checkpoint: Path, output: Path, force: bool) -> None:
    """Raises OutputError where `output` may not be written."""
    if output.exists() and output.samefile(checkpoint):
        raise OutputError(f"{output} is the checkpoint itself: give another name")
    check_output(output, force)


def _recalibrated(
    model: "Model", metadata: Metadata, batches: int, data: str | None, data_dir: str | Path
) -> "tuple[Model, Metadata]":
    from cnsn_cli.data.datasets import load_recorded
    from cnsn_cli.network.recalibration import recalibrated

    train, _ = load_recorded("train", metadata.task, metadata.data, data, data_dir)
    (model,) = recalibrated([model], train, batches)
    # Figures of quality were measured with other statistics.
    record = metadata.models[0].model_copy(update={"accuracy": None, "loss": None})
    return model, metadata.model_copy(update={"recalibrated": batches, "models": [record]})


def _folded(model: "Model", metadata: Metadata) -> "tuple[Model, Metadata]":
    from cnsn_cli.evaluation.costs import model_costs
    from cnsn_cli.network.folding import check_equal, fold

    folded = fold(model)
    check_equal(model, folded)
    record = metadata.models[0].model_copy(update=vars(model_costs(folded)[0]))
    return folded, metadata.model_copy(update={"folded": True, "models": [record]})


def detach_all(
    checkpoint: str | Path, folder: str | Path, force: bool = False, **options: Any
) -> dict[Path, Metadata]:
    """Write every model of a network as `<name>.safetensors` into `folder`; options as for `detach`."""
    checkpoint, folder = Path(checkpoint), Path(folder)
    models = _read_whole(checkpoint, read_header(checkpoint)).models
    outputs = {folder / f"{model.name}.safetensors": model.name for model in models}
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: --all writes into a folder")
    for output in filter(Path.exists, outputs):
        check_target(checkpoint, output, force)
    folder.mkdir(parents=True, exist_ok=True)
    return {output: detach(checkpoint, name, output, force, **options) for output, name in outputs.items()}


def choose_model(checkpoint: str | Path, budget: Budget) -> Choice:
    """The most accurate model of a network within the budget.

    Where that limits latency, models are timed: one image, one thread, on this machine. Raises BudgetError
    where none fits.
    """
    checkpoint = Path(checkpoint)
    models = _read_whole(checkpoint, read_header(checkpoint)).models
    latencies = _latencies(checkpoint) if "latency" in budget else {}
    candidates = [Candidate(m.name, m.macs, m.bytes, m.accuracy, latencies.get(m.name)) for m in models]
    return choose(candidates, budget)


def _latencies(checkpoint: Path) -> dict[str, float]:
    from cnsn_cli.evaluation.bench import bench

    return {speed.name: speed.p50 for speed in bench([checkpoint])}


def kept_names(header: Header, model: ModelRecord) -> dict[str, str]:
    """New name -> name in the whole file, of all tensors that a detached model keeps.

    These are the units from the cut on and the head, with all that is private to the sub-model laid over
    them.
    """
    kept = {name: name for name in header.entries if _is_kept(name, model.first_unit)}
    prefix = f"submodels.{model.name.removeprefix('submodel')}."
    private = {name.removeprefix(prefix): name for name in header.entries if name.startswith(prefix)}
    return {**kept, **private}


def _is_kept(name: str, first_unit: int) -> bool:
    part, number, *_ = [*name.split("."), ""]
    return part == "head" or (part == "units" and number.isdecimal() and int(number) >= first_unit)


def detached_metadata(whole: Metadata, header: Header, model: ModelRecord, names: dict[str, str]) -> Metadata:
    sha256 = {new: whole.sha256[old] for new, old in names.items() if old in whole.sha256}
    changes = {"kind": "detached", "models": [model], "sha256": sha256, "parent": header.sha256}
    changes["parent_exits"] = whole.exits
    return whole.model_copy(update=changes)
