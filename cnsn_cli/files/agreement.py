"""Whether a file holds the network that its metadata describe: limits, names, shapes, dtypes and blocks.

`files.checkpoint` asks before it uses any weight, and the state of a run asks for its tensors. This module
reads headers and metadata, and no weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cnsn_cli.errors import ArchitectureError, CheckpointError
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.files.tensor_file import Header
from cnsn_cli.network.memory_format import narrow_parts
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn

DTYPES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
MOST_PARAMETERS = 10_000  # parameter tensors that an architecture named by a file may have


@contextmanager
def not_larger_than(most: int) -> Iterator[None]:
    """Raises ArchitectureError as soon as a network that is being built has more than `most` parameters.

    The options of an architecture come from the file, and may ask for millions of layers.
    """
    count = 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ArchitectureError(f"its architecture has more than {most:,} parameter tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def check_tensors(path: Path, header: Header, expected: dict[str, Tensor]) -> None:
    """Raises CheckpointError unless the tensors of a file have the names, shapes and dtypes of `expected`."""
    for name in sorted(expected.keys() | header.entries.keys()):
        if name not in header.entries:
            raise CheckpointError(f"{path} lacks tensor {name!r} of its architecture")
        if name not in expected:
            raise CheckpointError(f"{path} has a tensor {name!r} that its architecture does not know")
        entry, tensor = header.entries[name], expected[name]
        if entry.shape != tuple(tensor.shape):
            shape = tuple(tensor.shape)
            raise CheckpointError(f"{path}: {name!r} has shape {entry.shape}, its architecture wants {shape}")
        wanted = DTYPES.get(tensor.dtype, "another")
        if entry.dtype != wanted:
            raise CheckpointError(
                f"{path}: {name!r} has dtype {entry.dtype}, its architecture wants {wanted}"
            )


def check_blocks(path: Path, network: Cnsn | Model, metadata: Metadata) -> None:
    """Raises CheckpointError unless the narrow networks of a file have the blocks that the file describes."""
    for narrow in narrow_parts(network):
        described = (metadata.narrow or {})[f"{narrow.width:g}"].blocks
        wanted = {block.name: block.shape for block in narrow.blocks if block.is_saved}
        if wanted != {name: block.shape for name, block in described.items()}:
            raise CheckpointError(
                f"{path} is broken: the blocks of the width @{narrow.width:g} are not its architecture's"
            )
