"""The raw side of a safetensors file: its header, and byte ranges, read and written without torch.

A file is 8 bytes of header length (little endian), a JSON header, and the bytes of the tensors one after
the other (https://github.com/huggingface/safetensors#format). The library reads tensors into arrays of a
framework; copying them from file to file, in any dtype, needs no array.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cnsn_cli.errors import CheckpointError

LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
CHUNK = 2**20  # bytes
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor in a file: its bytes lie from `start` to `end`, counted from the first tensor byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """What a file says of itself. `data_start` is where tensor bytes begin, `sha256` that of the header."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int
    sha256: str


def read_header(path: Path) -> Header:
    """Read and check the header; raises CheckpointError unless the file is whole and well formed."""
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder: name a file, such as best.safetensors in the folder of a run"
        )
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no ordinary file")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            raw = _raw_header(file, size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    try:
        content = json.loads(raw, object_pairs_hook=_unique)
        metadata = content.pop("__metadata__", {})
        entries = {name: _entry(name, value) for name, value in content.items()}
        _check_layout(entries, size - 8 - len(raw))
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no strings")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is broken or truncated: {error}") from error
    return Header(entries, metadata, 8 + len(raw), hashlib.sha256(raw).hexdigest())


def _raw_header(file: BinaryIO, size: int) -> bytes:
    if size < 8:
        raise ValueError(f"it has {size} bytes")
    (length,) = struct.unpack("<Q", file.read(8))
    if not 2 <= length <= min(LARGEST_HEADER, size - 8):
        raise ValueError(f"it starts with a header length of {length} in {size} bytes")
    return file.read(length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return content


def _entry(name: str, value: dict[str, Any]) -> Entry:
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    numbers = [*shape, *offsets]
    if dtype not in BITS or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"tensor {name!r} has an impossible description")
    entry = Entry(dtype, tuple(shape), *offsets)
    if entry.end - entry.start != prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"tensor {name!r} has {entry.end - entry.start} bytes, not those of its shape")
    return entry


def _check_layout(entries: dict[str, Entry], size: int) -> None:
    """Tensors must follow each other without holes, up to the end of the file."""
    position = 0
    for start, end in sorted((entry.start, entry.end) for entry in entries.values()):
        if start != position:
            raise ValueError(f"its tensors leave a hole or overlap at byte {position}")
        position = end
    if position != size:
        raise ValueError(f"it holds {size} bytes of tensors where its header tells of {position}")


def copy_tensors(
    source: Path, header: Header, names: dict[str, str], target: Path, metadata: str, sha256: dict[str, str]
) -> None:
    """Write a file with the tensors of `source` whose names are the values of `names`, under its keys.

    Only their bytes are read. Raises CheckpointError where they do not fit `sha256`, digests by new name.
    """
    kept = {new: header.entries[old] for new, old in names.items()}
    kept = dict(sorted(kept.items(), key=lambda item: (item[1].start, item[0])))
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(_new_header(kept, metadata))
        for name, entry in kept.items():
            digest = hashlib.sha256()
            for chunk in _chunks(reader, header.data_start + entry.start, entry.end - entry.start):
                digest.update(chunk)
                writer.write(chunk)
            if digest.hexdigest() != sha256.get(name):
                raise CheckpointError(f"{source} is damaged: tensor {names[name]!r} is not as it was saved")


def _new_header(entries: dict[str, Entry], metadata: str) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"cnsn": metadata}}
    position = 0
    for name, entry in entries.items():
        end = position + entry.end - entry.start
        content[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(content, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # keeps the tensors aligned
    return struct.pack("<Q", len(raw)) + raw


def _chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size > 0:
        chunk = file.read(min(CHUNK, size))
        if not chunk:
            raise CheckpointError("the file shrank while it was read")
        size -= len(chunk)
        yield chunk
