"""A safetensors file as bytes: its header and the bytes of its tensors, without torch.

A file is 8 bytes of header length (little endian), a JSON header, and the bytes of the tensors one after
the other (https://github.com/huggingface/safetensors#format):

    | 8 bytes | JSON header, padded | tensor | tensor | ... |
              0                     data_start
                                    0        end of the first = start of the second

A file is opened once, and everything is read through that one descriptor. The reader of the safetensors
library takes a path and would open the file again; and reading the bytes ourselves also lets us copy
any dtype. `files.checkpoint` and `deploy` call this module. It does not know what the metadata say.
"""

import hashlib
import io
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cnsn_cli.errors import CheckpointError

# Files may come from strangers. The limits bound the memory and the time that reading a header takes.
# Compare: resnet152 with a sub-model at each of its 50 detach points has 13,000 tensors, a header of 3 MB.
LARGEST_HEADER = 8 * 2**20  # bytes
MOST_VALUES = 500_000  # of JSON
LONGEST_NAME = 512
MOST_AXES = 8
LARGEST_SIZE = 2**48
CHUNK = 2**20  # bytes
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor in a file: its bytes are from `start` to `end`, counted from `data_start`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """The header of a file. Tensor bytes begin at byte `data_start`; `sha256` is the digest of the header."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int
    sha256: str


class TensorFile:
    """An open safetensors file whose header has been checked. As a context manager it closes the file.

    A training run replaces its checkpoints after every epoch. An open descriptor keeps the old file, so
    header and tensors always belong together. Raises CheckpointError unless the file is complete and well
    formed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self.header = _read_header(path, self._file, os.fstat(self._file.fileno()).st_size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, name: str) -> bytearray:
        """The bytes of a tensor. Raises CheckpointError if the file became shorter after it was opened."""
        entry = self.header.entries[name]
        data, position = bytearray(entry.end - entry.start), 0
        for chunk in self.chunks(name):
            data[position : position + len(chunk)] = chunk
            position += len(chunk)
        return data

    def copy_to(self, target: BinaryIO) -> None:
        """Write the bytes of the whole file to `target`."""
        for chunk in _chunks(self._file, self.path, 0, os.fstat(self._file.fileno()).st_size):
            target.write(chunk)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor in pieces of CHUNK bytes. Raises the errors of `read`."""
        entry = self.header.entries[name]
        return _chunks(self._file, self.path, self.header.data_start + entry.start, entry.end - entry.start)

    def gather(self, name: str, runs: Iterable[tuple[int, int]], size: int) -> bytearray:
        """Runs of bytes of a tensor, joined: pairs of start and end, `size` bytes in all. Like `read`."""
        first, file = self.header.data_start + self.header.entries[name].start, self._file.fileno()
        gathered, position = bytearray(size), 0
        view = memoryview(gathered)
        for start, end in runs:
            target = view[position : position + end - start]
            try:
                count = os.preadv(file, [target], first + start)
            except OSError as error:
                raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error
            if count < len(target):
                raise CheckpointError(f"{self.path} shrank while it was read")
            position += count
        return gathered


def read_header(path: Path) -> Header:
    """The header of a file, which is closed again. Raises the errors of TensorFile."""
    with TensorFile(path) as file:
        return file.header


def header_in(path: Path, start: bytes, size: int) -> Header:
    """The header in `start`, the first bytes of a file of `size` bytes. Raises the errors of TensorFile."""
    return _read_header(path, io.BytesIO(start), size)


def _open(path: Path) -> io.FileIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block until somebody writes
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb", buffering=0)  # unbuffered: no byte is read in vain
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise CheckpointError(
            f"{path} is a folder: name a file, such as best.safetensors in the folder of a run"
        )
    raise CheckpointError(f"{path} is no ordinary file")


def _read_header(path: Path, file: BinaryIO, size: int) -> Header:
    try:
        raw = _raw_header(path, file, size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    try:
        entries, metadata = _parse(raw.decode())
        _check_layout(entries, size - 8 - len(raw))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is broken or truncated: {error}") from error
    return Header(entries, metadata, 8 + len(raw), hashlib.sha256(raw).hexdigest())


def _raw_header(path: Path, file: BinaryIO, size: int) -> bytes:
    if size < 8:
        raise ValueError(f"it has {size} bytes")
    start = file.read(8)
    if start.startswith(b"PK\x03\x04"):
        raise ValueError(
            "it is a zip, such as torch writes (.pth, .pt2); safetensors.torch.save_file saves a state_dict()"
        )
    (length,) = struct.unpack("<Q", start)
    if not 2 <= length <= min(LARGEST_HEADER, size - 8):
        raise ValueError(
            f"it starts with a header length of {length} in {size} bytes; at most {LARGEST_HEADER} are read"
        )
    return b"".join(_chunks(file, path, 8, length))


def check_json(text: str) -> None:
    """Raises ValueError if `text` has more values than any honest file: parsing it could fill the memory."""
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"its JSON has more than {MOST_VALUES:,} values")


def _parse(text: str) -> tuple[dict[str, Entry], dict[str, str]]:
    check_json(text)
    content = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no strings")
    return {name: _entry(name, value) for name, value in content.items()}, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("its header lists a name twice")
    return content


def _entry(name: str, value: object) -> Entry:
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"the name of a tensor is not 1 to {LONGEST_NAME} printable characters")
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]} if (
            dtype in BITS and len(shape) <= MOST_AXES and all(map(_is_size, (*shape, start, end)))
        ):
            entry = Entry(dtype, tuple(shape), start, end)
        case _:
            raise ValueError(f"tensor {name!r} has an impossible description")
    if entry.end - entry.start != prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"tensor {name!r} has {entry.end - entry.start} bytes, not those of its shape")
    return entry


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def _check_layout(entries: dict[str, Entry], size: int) -> None:
    """Raises ValueError unless the tensors follow each other without holes up to the end of the file."""
    position = 0
    for start, end in sorted((entry.start, entry.end) for entry in entries.values()):
        if start != position:
            raise ValueError(f"its tensors leave a hole or overlap at byte {position}")
        position = end
    if position != size:
        raise ValueError(f"it holds {size} bytes of tensors, but its header lists {position}")


def new_header(entries: Mapping[str, Entry], metadata: str) -> bytes:
    """The bytes of a new file before its first tensor: length and header. Tensors follow in this order."""
    content: dict[str, Any] = {"__metadata__": {"cnsn": metadata}}
    position = 0
    for name, entry in entries.items():
        end = position + entry.end - entry.start
        content[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(content, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # keeps the tensors aligned
    return struct.pack("<Q", len(raw)) + raw


def _chunks(file: BinaryIO, path: Path, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size > 0:
        try:
            chunk = file.read(min(CHUNK, size))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        if not chunk:
            raise CheckpointError(f"{path} shrank while it was read")
        size -= len(chunk)
        yield chunk
