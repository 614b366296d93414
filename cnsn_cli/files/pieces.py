"""Copying tensors of a file, or leading blocks of them, into a new file, without torch.

`deploy.copying` says what to copy. Only the bytes of these pieces are read, and what is copied is checked.
This module does not know what the tensors mean.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import prod
from typing import BinaryIO, NamedTuple

from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.tensor_file import BITS, CHUNK, Entry, Header, TensorFile, new_header

EXPONENTS = {
    "F8_E4M3": 0x7F, "F8_E5M2": 0x7C, "F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000, "F64": 0x7FF0 << 48,
}  # fmt: skip
UNSIGNED = {8: "B", 16: "H", 32: "I", 64: "Q"}  # codes of the array module by bits


class Piece(NamedTuple):
    """What a new file takes of the tensor `name`: its leading block of this `shape`, or all of it (None)."""

    name: str
    shape: tuple[int, ...] | None = None


def copy_pieces(
    source: TensorFile,
    pieces: Mapping[str, Piece],
    target: BinaryIO,
    metadata: str,
    sha256: Mapping[str, str],
) -> None:
    """Write a new file with these pieces of `source`.

    `pieces` maps each new name to its source; `sha256` maps each new name to the expected digest. Raises
    CheckpointError if a digest differs or a value is not finite.
    """
    kept = kept_entries(source.header, pieces)
    target.write(new_header(kept, metadata))
    for name, entry in kept.items():
        digest, finite = hashlib.sha256(), True
        for chunk in _chunks(source, pieces[name]):
            digest.update(chunk)
            finite = finite and all_finite(entry.dtype, chunk)
            target.write(chunk)
        _check(source, pieces[name].name, digest.hexdigest() == sha256.get(name), finite)


def _check(source: TensorFile, name: str, as_saved: bool, finite: bool) -> None:
    if not as_saved:
        raise CheckpointError(f"{source.path} is damaged: tensor {name!r} is not as it was saved")
    if not finite:
        raise CheckpointError(f"{source.path} cannot be used: tensor {name!r} holds NaN or infinite values")


def kept_entries(header: Header, pieces: Mapping[str, Piece]) -> dict[str, Entry]:
    """New name -> entry, in the order of the bytes; a block has the start of its tensor, and its own end.

    Raises ValueError if a piece is no leading block of a tensor in `header`.
    """
    kept = {new: _entry(header, piece) for new, piece in pieces.items()}
    return dict(sorted(kept.items(), key=lambda item: (item[1].start, item[0])))


def _entry(header: Header, piece: Piece) -> Entry:
    name, shape = piece
    entry = header.entries.get(name)
    if entry is None:
        raise ValueError(f"it lacks tensor {name!r}")
    if shape is None:
        return entry
    if len(shape) != len(entry.shape) or any(
        few > many for few, many in zip(shape, entry.shape, strict=True)
    ):
        raise ValueError(f"tensor {name!r} has no leading block of shape {shape}")
    return Entry(entry.dtype, shape, entry.start, entry.start + prod(shape) * BITS[entry.dtype] // 8)


def _chunks(source: TensorFile, piece: Piece) -> Iterator[bytes | bytearray]:
    """The bytes of a piece, in chunks of about CHUNK bytes."""
    name, shape = piece
    if shape is None:
        yield from source.chunks(name)
        return
    entry = source.header.entries[name]
    batch, size = [], 0
    for start, end in _runs(entry.shape, shape, BITS[entry.dtype] // 8):
        batch.append((start, end))
        size += end - start
        if size >= CHUNK:
            yield source.gather(name, batch, size)
            batch, size = [], 0
    yield source.gather(name, batch, size)


def _runs(whole: Sequence[int], block: Sequence[int], width: int) -> Iterator[tuple[int, int]]:
    """Where the bytes of a leading block are in a tensor, as pairs of start and end; a number has `width`.

    (2, 6) of (3, 10):   ######....    A tensor lies in the file row by row, so a run of bytes ends where
                         ######....    a row of the block ends. A run has at most CHUNK bytes.
                         ..........
    """
    cut = [axis for axis, (few, many) in enumerate(zip(block, whole, strict=True)) if few < many]
    last = cut[-1] if cut else 0
    size = prod(block[last:]) * width
    for number in range(prod(block[:last]) if size else 0):
        start, stride = 0, width * prod(whole[last:])
        for axis in reversed(range(last)):
            number, index = divmod(number, block[axis])
            start, stride = start + index * stride, stride * whole[axis]
        for part in range(start, start + size, CHUNK):
            yield part, min(part + CHUNK, start + size)


def all_finite(dtype: str, data: bytes | bytearray) -> bool:
    """False if a float in `data` is infinite or NaN, that is, if all bits of its exponent are ones.

    Fast path: the highest byte of each value is enough to tell for weights that are not above 1e38.
    """
    if dtype not in EXPONENTS:
        return True
    mask, size = EXPONENTS[dtype], BITS[dtype] // 8
    highest = data[size - 1 :: size]
    if not any(byte in highest for byte in _suspicious(mask >> 8 * (size - 1))):
        return True
    return not any(value & mask == mask for value in array(UNSIGNED[BITS[dtype]], data))


@cache
def _suspicious(top: int) -> tuple[int, ...]:
    """The bytes that have all bits of `top`."""
    return tuple(byte for byte in range(256) if byte & top == top)
