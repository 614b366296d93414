"""Taking one model out of a network's file by copying bytes, without torch. Only the kept bytes are read.

    whole file                         detached submodel1, which enters at unit 7
    units.0.* ... units.6.*
    units.7.* ... head.*          ->   units.7.* ... head.*
    submodels.1.step_down.*       ->   step_down.*
    submodels.1.units.7...mean    ->   units.7...mean, instead of the base-model's

`deploy.detach` chooses between this module and `deploy.recompute`, which computes tensors. This module does
not know what the tensors mean.
"""

from pathlib import Path

from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.metadata import Metadata, ModelRecord, metadata_in, read_metadata
from cnsn_cli.files.tensor_file import Header, TensorFile, copy_tensors, kept_entries, new_header
from cnsn_cli.files.writer import replacing


def read_whole(file: TensorFile) -> Metadata:
    """The metadata of an open file that holds a whole network. Raises CheckpointError for any other file."""
    metadata = read_metadata(file.path, file.header)
    if metadata.kind == "detached":
        raise CheckpointError(f"{file.path} is detached already: it holds {metadata.models[0].name} alone")
    return metadata


def copy_model(
    file: TensorFile, whole: Metadata, model: ModelRecord, output: Path, force: bool = False
) -> Metadata:
    """Write one model of an open file to `output`; returns the metadata of the new file.

    Raises CheckpointError if the file is damaged, OutputError if `output` cannot be written.
    """
    names = kept_names(file.header, model)
    check_size(file, model, names)
    metadata = detached_metadata(file.header, whole, model)
    with replacing(output, force, metadata_in) as target:
        copy_tensors(file, names, target, metadata.to_json(), metadata.sha256)
    return metadata


def check_size(file: TensorFile, model: ModelRecord, names: dict[str, str]) -> None:
    """Raises CheckpointError if the size of the kept tensors differs from that in the metadata."""
    entries = file.header.entries
    held = sum(entries[name].end - entries[name].start for name in names.values())
    if held != model.bytes:
        raise CheckpointError(
            f"{file.path} is damaged: {model.name} takes {held:,} bytes in it, "
            f"not the {model.bytes:,} that its metadata state"
        )


def copied_size(header: Header, whole: Metadata, model: ModelRecord) -> int:
    """The size in bytes of the file that `copy_model` would write."""
    kept = kept_entries(header, kept_names(header, model))
    text = detached_metadata(header, whole, model).to_json()
    return len(new_header(kept, text)) + sum(entry.end - entry.start for entry in kept.values())


def kept_names(header: Header, model: ModelRecord) -> dict[str, str]:
    """New name -> name in the whole file, for every tensor that a detached model keeps.

    The model keeps the head and the units from the cut on. Private tensors of the sub-model replace the
    base-model's tensors of the same name.
    """
    kept = {name: name for name in header.entries if _is_kept(name, model.first_unit)}
    prefix = f"submodels.{model.name.removeprefix('submodel')}."
    private = {name.removeprefix(prefix): name for name in header.entries if name.startswith(prefix)}
    return {**kept, **private}


def _is_kept(name: str, first_unit: int) -> bool:
    part, number, *_ = [*name.split("."), ""]
    return part == "head" or (part == "units" and number.isdecimal() and int(number) >= first_unit)


def detached_metadata(header: Header, whole: Metadata, model: ModelRecord) -> Metadata:
    """The metadata of the file of a detached model, with the digests of the copied tensors."""
    names = kept_names(header, model)
    sha256 = {new: whole.sha256[old] for new, old in names.items() if old in whole.sha256}
    changes = {"kind": "detached", "models": [model], "sha256": sha256, "parent": header.sha256}
    return whole.model_copy(update={**changes, "parent_exits": whole.exits})
