"""The metadata in an ONNX file, read without its graph and weights.

An ONNX file is one protobuf message (https://protobuf.dev/programming-guides/encoding): a list of fields,
each with a number and a length. The libraries for protobuf would read all of it into memory. `cnsn info` gets
metadata here, and `files.onnx_model` before it looks at anything else in a file.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.metadata import KEY, Metadata, parse_metadata
from cnsn_cli.files.tensor_file import LARGEST_HEADER

METADATA, KEY_OF_TEXT, TEXT = 14, 1, 2  # numbers of fields in onnx.proto
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # kinds of fields


def read_onnx_metadata(path: Path) -> Metadata:
    """The metadata of an exported file. Raises CheckpointError if cnsn did not write it."""
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: no such file")
    try:
        with path.open("rb") as file:
            return onnx_metadata(path, file)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def onnx_metadata(path: Path, file: BinaryIO) -> Metadata:
    """Like `read_onnx_metadata`, from the open file `path`."""
    try:
        texts = _texts(file)
    except ValueError as error:
        raise CheckpointError(f"{path} is no ONNX file that can be run: {error}") from error
    metadata = parse_metadata(path, texts.get(KEY))
    if metadata.kind != "detached":
        raise CheckpointError(f"{path} holds 1 model, not the {len(metadata.models)} of a network")
    return metadata


def _texts(file: BinaryIO) -> dict[str, str]:
    """The texts by key. Raises ValueError if the file is no protobuf message."""
    texts, size = {}, 0
    for entry in _fields(file, METADATA):
        size += len(entry)
        if size > LARGEST_HEADER:
            raise ValueError(f"it has more than {LARGEST_HEADER:,} bytes of metadata")
        key, text = (b"".join(_fields(io.BytesIO(entry), number)) for number in (KEY_OF_TEXT, TEXT))
        texts[key.decode()] = text.decode()
    return texts


def _fields(file: BinaryIO, wanted: int) -> Iterator[bytes]:
    """The content of each field with the number `wanted`; the others are passed over."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    while file.tell() < size:
        number, kind = divmod(_varint(file), 8)
        if number == 0:
            raise ValueError("it is no protobuf message")
        length = _length(file, kind)
        if length > size - file.tell():
            raise ValueError("it is truncated")
        if number == wanted and kind == BYTES and length <= LARGEST_HEADER:
            yield file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)


def _length(file: BinaryIO, kind: int) -> int:
    """How many bytes follow in a field; a number of variable length is read at once."""
    if kind == VARINT:
        _varint(file)
        return 0
    if kind == BYTES:
        return _varint(file)
    if kind in (EIGHT_BYTES, FOUR_BYTES):
        return 8 if kind == EIGHT_BYTES else 4
    raise ValueError("it is no protobuf message")


def _varint(file: BinaryIO) -> int:
    """A number of up to 10 bytes; each byte holds 7 bits, the lowest ones first."""
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is truncated")
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
    raise ValueError("it is no protobuf message")
