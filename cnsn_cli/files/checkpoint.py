"""Saving and loading networks. A file never makes code run: its architecture is looked up by name."""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cnsn_cli.backbones import registry
from cnsn_cli.errors import ArchitectureError, CheckpointError, CnsnError, one_line
from cnsn_cli.files.metadata import KEY, Metadata, read_metadata
from cnsn_cli.files.tensor_file import Header, read_header
from cnsn_cli.files.writer import replacing
from cnsn_cli.network.dtypes import HALVES, cast_weights
from cnsn_cli.network.folding import fold
from cnsn_cli.network.memory_format import fastest
from cnsn_cli.network.network import Cnsn, Model
from cnsn_cli.version import __version__

DTYPES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64",
}  # fmt: skip
MOST_PARAMETERS = 10_000  # tensors, of an architecture that a file names


def versions() -> dict[str, str]:
    """What a network was made with."""
    return {"cnsn-cli": __version__, "torch": torch.__version__, "python": platform.python_version()}


def save(path: Path, network: Cnsn | Model, metadata: Metadata) -> Metadata:
    """Write a network or a detached model; returns its metadata, with digests. Raises OutputError."""
    tensors = {name: on_cpu(tensor) for name, tensor in network.state_dict().items()}
    digests = {name: digest(tensor) for name, tensor in tensors.items()}
    metadata = metadata.model_copy(update={"sha256": digests})
    write_tensors(path, tensors, KEY, metadata.to_json())
    return metadata


def on_cpu(tensor: Tensor) -> Tensor:
    """Detached, contiguous and on the CPU, as safetensors wants it."""
    return tensor.detach().cpu().contiguous()


def write_tensors(path: Path, tensors: dict[str, Tensor], key: str, text: str) -> None:
    """Write tensors, with one text as metadata. Raises OutputError."""
    content = serialise({name: on_cpu(tensor) for name, tensor in tensors.items()}, metadata={key: text})
    with replacing(path) as file:
        file.write(content)


def load(path: str | Path) -> Cnsn | Model:
    """Read a whole network or a detached model, in eval mode on the CPU.

    Weights lie as is fastest for a few images, and are float32 whatever the file has. Every tensor is checked
    against the architecture before it is read, and against its digest after. Raises CheckpointError, also
    where a weight is not finite, and ArchitectureError where the architecture is not installed.
    """
    path = Path(path)
    network, metadata = load_blank(path)
    tensors = read_tensors(path, metadata.sha256)
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CheckpointError(f"{path} is of no use: tensor {name!r} holds NaN or infinite values")
    network.load_state_dict(tensors, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):
        raise CheckpointError(
            f"{path} is of an architecture with a constant that is too large to be made here"
        )
    if metadata.dtype in HALVES:
        network = cast_weights(network, torch.float32)
    return fastest(network).eval()


def load_blank(path: Path) -> tuple[Cnsn | Model, Metadata]:
    """The network that a file tells of, on the meta device, checked against the tensors in the file."""
    header = read_header(path)
    metadata = read_metadata(path, header)
    network = _blank(path, metadata)
    check_tensors(path, header, network.state_dict())
    for model, record in zip(network.models(), metadata.models, strict=True):
        if (model.drops, model.first_unit) != (record.drops, record.first_unit):
            raise CheckpointError(f"{path} places {record.name} where its architecture has no detach point")
    return network, metadata


def digest(tensor: Tensor) -> str:
    """SHA-256 of the bytes of a contiguous tensor on the CPU."""
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _blank(path: Path, metadata: Metadata) -> Cnsn | Model:
    try:
        with _not_larger_than(MOST_PARAMETERS):
            backbone = registry.find(metadata.arch).build_blank(metadata.task)
        with torch.device("meta"):
            network = Cnsn(backbone, metadata.exits, metadata.task, metadata.bn, metadata.step_down)
        if metadata.kind == "network":
            return network
        model = network.models()[-1]
        model.name = metadata.models[0].name
        model = fold(model) if metadata.folded else model
        return cast_weights(model, HALVES[metadata.dtype]) if metadata.dtype in HALVES else model
    except CnsnError as error:
        raise type(error)(f"{path}, made with {metadata.provider}: {error}") from error
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:  # sizes that no tensor can have
        reason = one_line(error)
        raise CheckpointError(f"{path} tells of a network that cannot be built: {reason}") from error


@contextmanager
def _not_larger_than(most: int) -> Iterator[None]:
    """Stops an architecture whose options, which come from a file, ask for a giant of layers."""
    count = 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ArchitectureError(f"it takes more than {most:,} parameter tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bound.isfinite() for bound in tensor.aminmax())  # one pass; NaN comes out of it


def check_tensors(path: Path, header: Header, expected: dict[str, Tensor]) -> None:
    """Raises CheckpointError unless a file has tensors of the names, shapes and dtypes `expected`."""
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


def read_tensors(path: Path, sha256: dict[str, str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises CheckpointError where one does not fit its digest."""
    tensors = read_plain(path)
    for name in sorted(tensors.keys() | sha256.keys()):
        if name not in tensors or digest(tensors[name]) != sha256.get(name):
            raise CheckpointError(f"{path} is damaged: tensor {name!r} is not as it was saved")
    return tensors


def read_plain(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, whoever wrote it. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is broken: {error}") from error
