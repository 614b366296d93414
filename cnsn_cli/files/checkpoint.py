"""Saving and loading networks. A file never makes code run: its architecture is looked up by name.

`training` and `deploy` save networks, and every command that computes loads them here. This module does not
know how a network was trained.
"""

import hashlib
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.narrowing import leading, narrow_backbones, narrowed
from cnsn_cli.errors import CheckpointError, CnsnError, one_line
from cnsn_cli.files.agreement import DTYPES, MOST_PARAMETERS, check_blocks, check_tensors, not_larger_than
from cnsn_cli.files.hub import path_of
from cnsn_cli.files.metadata import KEY, Metadata, metadata_in, read_metadata
from cnsn_cli.files.tensor_file import Entry, Header, TensorFile, header_in, new_header, read_header
from cnsn_cli.files.writer import NewFile, read_back, replacing
from cnsn_cli.network.dtypes import HALVES, cast_weights
from cnsn_cli.network.folding import fold
from cnsn_cli.network.memory_format import for_few_images, for_file
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.version import __version__

TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def versions() -> dict[str, str]:
    """The versions of cnsn-cli, torch and Python that run now; a file records them."""
    return {"cnsn-cli": __version__, "torch": torch.__version__, "python": platform.python_version()}


def save(path: Path, network: Cnsn | Model, metadata: Metadata, force: bool = True) -> Metadata:
    """Write a network or a detached model; returns `metadata` with the digests added.

    Raises OutputError, without `force` also if `path` exists.
    """
    tensors = {name: for_file(tensor) for name, tensor in network.state_dict().items()}
    metadata = _with_digests(metadata, tensors)
    write_tensors(path, tensors, KEY, metadata.to_json(), force, metadata_in)
    return metadata


def new_file(path: Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> NewFile:
    """The file that `save` would write for a network with these tensors, which are in the form for files."""
    text = _with_digests(metadata, tensors).to_json()
    return NewFile(path, file_content(tensors, KEY, text), metadata_in)


def file_size(network: Cnsn | Model, metadata: Metadata) -> int:
    """The size in bytes of the file that `save` would write."""
    tensors = {name: for_file(tensor) for name, tensor in network.state_dict().items()}
    return len(file_content(tensors, KEY, _with_digests(metadata, tensors).to_json()))


def _with_digests(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Metadata:
    sha256 = {name: digest(tensor) for name, tensor in tensors.items()}
    return metadata.with_digests(
        sha256, lambda name, shape: digest(tensors[name][leading(shape)].contiguous())
    )


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    key: str,
    text: str,
    force: bool = True,
    check: Callable[[Path], object] = read_header,
) -> None:
    """Write a safetensors file with the one metadata entry `key`: `text`, which `check` reads back.

    Raises OutputError.
    """
    content = file_content(tensors, key, text)
    with replacing(path, force, check) as file:
        file.write(content)


def file_content(tensors: Mapping[str, Tensor], key: str, text: str) -> bytes:
    """The bytes of a safetensors file with the one metadata entry `key`: `text`."""
    return serialise({name: for_file(tensor) for name, tensor in tensors.items()}, metadata={key: text})


def check_readable(path: Path, network: Cnsn | Model, metadata: Metadata, known: Architecture) -> None:
    """Raises OutputError if cnsn could not read the file that `save` would write to `path`."""
    tensors = network.state_dict()
    digests = dict.fromkeys(tensors, "0" * hashlib.sha256().digest_size * 2)
    entries = {
        name: Entry(DTYPES.get(tensor.dtype, "unknown"), tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in tensors.items()
    }
    text = metadata.with_digests(digests, lambda name, shape: digests[name]).to_json()
    start = new_header(entries, text)
    size = len(start) + sum(entry.end for entry in entries.values())
    # Small weights of the network that is built here are drawn; the run's own random numbers must not change.
    with read_back(path, path), torch.random.fork_rng(devices=()):
        _read_blank(path, header_in(path, start, size), known)


class Opened(NamedTuple):
    """A network with its weights, and the metadata and header of its file."""

    network: Cnsn | Model
    metadata: Metadata
    header: Header


def load(path: str | Path) -> Cnsn | Model:
    """Read a whole network or a detached model, and return it in eval mode on the CPU.

    Arguments:
        path: a file that `cnsn train` or `cnsn detach` wrote; as a text also its address,
            `hf://user/repo/file`.

    A whole network (`Cnsn`) returns the logits of all its models, a detached one (`Model`) its own. Weights
    are float32 even if the file holds float16 or bfloat16, in the memory format that is fastest for a few
    images. Every tensor is checked against the architecture before it is read, and against its digest
    afterwards. Raises CheckpointError if the file is missing, damaged, not written by cnsn or holds weights
    that are not finite, ArchitectureError if the architecture is not installed.
    """
    return open_network(path_of(path)).network


def open_network(path: Path, known: Architecture | None = None) -> Opened:
    """Like `load`, but returns the metadata and the header of the file too.

    An architecture that is `known` already is not looked up again.
    """
    with TensorFile(path) as file:
        return read_network(file, known)


def read_network(file: TensorFile, known: Architecture | None = None) -> Opened:
    """Like `open_network`, from an open file. Raises the errors of `load`."""
    network, metadata = _read_blank(file.path, file.header, known)
    _load_weights(network, file, metadata)
    if metadata.dtype in HALVES:
        network = cast_weights(network, torch.float32)
    return Opened(for_few_images(network).eval(), metadata, file.header)


def load_blank(path: Path) -> Opened:
    """The network that a file describes, without weights (on the meta device).

    Its tensors are checked against those in the file. Raises the errors of `load`.
    """
    with TensorFile(path) as file:
        return Opened(*_read_blank(path, file.header), file.header)


def fill(network: Cnsn | Model, path: Path) -> None:
    """Copy the weights of a file into `network`. Raises CheckpointError if the file holds another network."""
    with TensorFile(path) as file:
        metadata = read_metadata(path, file.header)
        check_tensors(path, file.header, network.state_dict())
        network.load_state_dict(read_tensors(file, metadata.sha256))


def _load_weights(network: Cnsn | Model, file: TensorFile, metadata: Metadata) -> None:
    tensors = read_tensors(file, metadata.sha256)
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CheckpointError(f"{file.path} cannot be used: tensor {name!r} holds NaN or infinite values")
    network.load_state_dict(tensors, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):
        raise CheckpointError(
            f"{file.path} cannot be loaded: its architecture has a constant that is too large to compute here"
        )


def _read_blank(
    path: Path, header: Header, known: Architecture | None = None
) -> tuple[Cnsn | Model, Metadata]:
    metadata = read_metadata(path, header)
    network = _blank(path, metadata, known if known and known.text == metadata.arch else None)
    check_tensors(path, header, network.state_dict())
    for model, record in zip(network.models(), metadata.models, strict=True):
        if (model.drops, model.first_unit) != (record.drops, record.first_unit):
            raise CheckpointError(f"{path} places {record.name} where its architecture has no detach point")
    check_blocks(path, network, metadata)
    return network, metadata


def digest(tensor: Tensor) -> str:
    """SHA-256 of the bytes of a contiguous tensor on the CPU."""
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _narrow(arch: Architecture, backbone: Backbone, metadata: Metadata) -> dict[float, Backbone]:
    """The narrow networks that a file describes. Raises CheckpointError if it names other architectures."""
    for width, record in (metadata.narrow or {}).items():
        if record.arch != (text := narrowed(arch, float(width)).text):
            raise CheckpointError(f"the width @{width} of {arch.text} is {text}, not {record.arch}")
    return narrow_backbones(arch, backbone, metadata.exits, metadata.task)


def _blank(path: Path, metadata: Metadata, known: Architecture | None) -> Cnsn | Model:
    try:
        arch = known or registry.find(metadata.arch, metadata.provider)
        with not_larger_than(MOST_PARAMETERS):
            backbone = arch.build_blank(metadata.task)
            narrow = _narrow(arch, backbone, metadata)
        with torch.device("meta"):
            kinds = metadata.bn, metadata.step_down
            network = Cnsn(backbone, metadata.exits, metadata.task, *kinds, narrow)
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
        raise CheckpointError(f"{path} describes a network that cannot be built: {reason}") from error


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bound.isfinite() for bound in tensor.aminmax())  # one pass; a NaN becomes both bounds


def read_tensors(file: TensorFile, sha256: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of an open file. Raises CheckpointError if the digest of one is not that in `sha256`."""
    entries, tensors = file.header.entries, {}
    for name in sorted(entries.keys() | sha256.keys()):
        data = file.read(name) if name in entries else bytearray()
        if name not in entries or hashlib.sha256(data).hexdigest() != sha256.get(name):
            raise CheckpointError(f"{file.path} is damaged: tensor {name!r} is not as it was saved")
        tensors[name] = _as_tensor(data, entries[name])
    return tensors


def read_plain(path: Path) -> dict[str, Tensor]:
    """All tensors of any safetensors file, of ours or of others. Raises CheckpointError."""
    with TensorFile(path) as file:
        return {name: _as_tensor(file.read(name), entry) for name, entry in file.header.entries.items()}


def _as_tensor(data: bytearray, entry: Entry) -> Tensor:
    """The tensor with the bytes `data`, whose memory it shares."""
    dtype = TORCH_DTYPES[entry.dtype]
    return (
        torch.frombuffer(data, dtype=dtype).view(entry.shape)
        if data
        else torch.empty(entry.shape, dtype=dtype)
    )
