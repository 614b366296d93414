"""Saving and loading networks. A file never makes code run: its architecture is looked up by name."""

import hashlib
import platform
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cnsn_cli import __version__, registry
from cnsn_cli.errors import CheckpointError, CnsnError, OutputError
from cnsn_cli.files import replacing
from cnsn_cli.folding import fold
from cnsn_cli.metadata import KEY, Metadata, read_metadata
from cnsn_cli.network import Cnsn, Model
from cnsn_cli.precision import HALVES, lower
from cnsn_cli.tensorfile import Header, read_header

STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


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
    with replacing(path) as temporary:
        try:
            held = {name: on_cpu(tensor) for name, tensor in tensors.items()}
            save_file(held, temporary, metadata={key: text})
        except SafetensorError as error:  # also where the disk is full
            raise OutputError(f"cannot write {path}: {error}") from error


def load(path: str | Path) -> Cnsn | Model:
    """Read a whole network or a detached model, in eval mode on the CPU.

    Weights lie channels last, which is fastest for a few images, and are float32 whatever the file has. Every
    tensor is checked against the architecture before it is read, and against its digest after. Raises
    CheckpointError, and ArchitectureError where the architecture is not installed.
    """
    path = Path(path)
    network, metadata = load_blank(path)
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if digest(tensor) != metadata.sha256.get(name):
            raise CheckpointError(f"{path} is damaged: tensor {name!r} is not as it was saved")
    network.load_state_dict(tensors, assign=True)
    return network.float().to(memory_format=torch.channels_last).eval()


def load_blank(path: Path) -> tuple[Cnsn | Model, Metadata]:
    """The network that a file tells of, on the meta device, checked against the tensors in the file."""
    header = read_header(path)
    metadata = read_metadata(path, header)
    network = _blank(path, metadata)
    _check_tensors(path, header, network)
    for model, record in zip(network.models(), metadata.models, strict=True):
        if (model.drops, model.first_unit) != (record.drops, record.first_unit):
            raise CheckpointError(f"{path} places {record.name} where its architecture has no detach point")
    return network, metadata


def digest(tensor: Tensor) -> str:
    """SHA-256 of the bytes of a contiguous tensor on the CPU."""
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _blank(path: Path, metadata: Metadata) -> Cnsn | Model:
    try:
        backbone = registry.build_blank(metadata.arch, metadata.task)
        with torch.device("meta"):
            network = Cnsn(backbone, metadata.exits, metadata.task, metadata.bn)
    except CnsnError as error:
        raise type(error)(f"{path}, made with {metadata.provider}: {error}") from error
    if metadata.kind == "network":
        return network
    model = network.models()[-1]
    model.name = metadata.models[0].name
    model = fold(model) if metadata.folded else model
    return lower(model, HALVES[metadata.dtype]) if metadata.dtype in HALVES else model


def _check_tensors(path: Path, header: Header, network: nn.Module) -> None:
    expected = network.state_dict()
    for name in sorted(expected.keys() | header.entries.keys()):
        if name not in header.entries:
            raise CheckpointError(f"{path} lacks tensor {name!r} of its architecture")
        if name not in expected:
            raise CheckpointError(f"{path} has a tensor {name!r} that its architecture does not know")
        entry, tensor = header.entries[name], expected[name]
        if entry.shape != tuple(tensor.shape):
            shape = tuple(tensor.shape)
            raise CheckpointError(f"{path}: {name!r} has shape {entry.shape}, its architecture wants {shape}")
        wanted = STORED.get(tensor.dtype, str(tensor.dtype))
        if entry.dtype != wanted:
            raise CheckpointError(
                f"{path}: {name!r} has dtype {entry.dtype}, its architecture wants {wanted}"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except SafetensorError as error:
        raise CheckpointError(f"{path} is broken: {error}") from error
