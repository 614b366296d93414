"""Taking one model out of a network's file by copying bytes, without torch. Only the kept bytes are read.

    whole file                         detached submodel1, which enters at unit 7
    units.0.* ... units.6.*
    units.7.* ... head.*          ->   units.7.* ... head.*, or of a narrow model the leading blocks
    submodels.1.step_down.*       ->   step_down.*
    submodels.1.units.7...mean    ->   units.7...mean, instead of the base-model's

`deploy.detach` chooses between this module and `deploy.recompute`, which computes tensors. This module does
not know what the tensors mean.
"""

from collections.abc import Mapping
from pathlib import Path

from cnsn_cli.errors import CheckpointError
from cnsn_cli.exits import is_kept
from cnsn_cli.files.metadata import Metadata, ModelRecord, metadata_in, read_metadata
from cnsn_cli.files.pieces import Piece, copy_pieces, kept_entries
from cnsn_cli.files.tensor_file import Header, TensorFile, new_header
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
    pieces = kept_pieces(file.header, whole, model)
    check_size(file, model, pieces)
    metadata = detached_metadata(file.header, whole, model)
    with replacing(output, force, metadata_in) as target:
        copy_pieces(file, pieces, target, metadata.to_json(), metadata.sha256)
    return metadata


def check_size(file: TensorFile, model: ModelRecord, pieces: Mapping[str, Piece]) -> None:
    """Raises CheckpointError if the size of the kept tensors differs from that in the metadata."""
    try:
        held = sum(entry.end - entry.start for entry in kept_entries(file.header, pieces).values())
    except ValueError as error:
        raise CheckpointError(f"{file.path} is damaged: {error}") from error
    if held != model.bytes:
        raise CheckpointError(
            f"{file.path} is damaged: {model.name} takes {held:,} bytes in it, "
            f"not the {model.bytes:,} that its metadata state"
        )


def copied_size(header: Header, whole: Metadata, model: ModelRecord) -> int:
    """The size in bytes of the file that `copy_model` would write."""
    kept = kept_entries(header, kept_pieces(header, whole, model))
    text = detached_metadata(header, whole, model).to_json()
    return len(new_header(kept, text)) + sum(entry.end - entry.start for entry in kept.values())


def kept_pieces(header: Header, whole: Metadata, model: ModelRecord) -> dict[str, Piece]:
    """New name -> source in the whole file, for every tensor that a detached model keeps.

    The model keeps the head and the units from the cut on, a narrow one their leading blocks. Private tensors
    of the sub-model replace the base-model's tensors of the same name.
    """
    narrow = whole.narrow_of(model)
    blocks = (
        {name: block.shape for name, block in narrow.blocks.items()}
        if narrow
        else dict.fromkeys(header.entries)
    )
    kept = {name: Piece(name, shape) for name, shape in blocks.items() if is_kept(name, model.first_unit)}
    prefix = f"submodels.{model.name.removeprefix('submodel')}."
    private = {name.removeprefix(prefix): Piece(name) for name in header.entries if name.startswith(prefix)}
    return {**kept, **private}


def detached_metadata(header: Header, whole: Metadata, model: ModelRecord) -> Metadata:
    """The metadata of the file of a detached model, with the digests of the copied tensors and blocks."""
    narrow = whole.narrow_of(model)
    sha256: dict[str, str] = {}
    for new, (old, shape) in kept_pieces(header, whole, model).items():
        known = narrow.blocks[old].sha256 if narrow and shape is not None else whole.sha256.get(old)
        sha256 |= {} if known is None else {new: known}
    return whole.detached(model, header.sha256).model_copy(update={"sha256": sha256})
