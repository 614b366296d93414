"""Writing models for runtimes that do not know cnsn: ONNX and torch.export (.pt2).

`cnsn export` and Python users start here; `deploy.int8` builds on it. Each file is loaded again and compared
with PyTorch before it appears at its path. This module does not know where its model came from.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from cnsn_cli.choices import ExportFormat
from cnsn_cli.data.pixels import normalise
from cnsn_cli.errors import ExportError, OutputError, one_line
from cnsn_cli.files.hub import path_of
from cnsn_cli.files.metadata import KEY, Metadata
from cnsn_cli.files.model_file import open_weights
from cnsn_cli.files.onnx_model import OnnxModel, require_onnx
from cnsn_cli.files.writer import check_output, filling, replacing
from cnsn_cli.network.memory_format import contiguous
from cnsn_cli.network.model import Model
from cnsn_cli.stages import stage
from cnsn_cli.task import Task

TOLERANCE = 1e-4  # times the largest logit, or times 1 if all are smaller
CHECKED_BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Export:
    """A file that was written, its `metadata` and its size in `bytes`.

    `opset` is the operator version of an ONNX file, read from the file; None for .pt2. `difference` is the
    largest difference between the file's logits and PyTorch's; None for int8, whose logits differ on purpose.
    """

    metadata: Metadata
    bytes: int
    opset: int | None
    difference: float | None


class WithPreprocessing(nn.Module):
    """A model that takes pixels uint8 (N, C, H, W), because scaling and normalisation are part of it."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.task.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(model.task.std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model((pixels / 255 - self.mean) / self.std)
        return logits


def export(
    file: str | Path,
    to: ExportFormat,
    output: str | Path,
    submodel: str | None = None,
    with_preprocess: bool = False,
    force: bool = False,
) -> Export:
    """Write one model for ONNX runtimes or torch.export; the new file does not need cnsn.

    Arguments:
        file: a whole network or a detached model, as `cnsn train` or `cnsn detach` writes it.
        to: `onnx` or `pt2` (torch.export).
        output: the file to write; its name ends in `.onnx` or `.pt2`.
        submodel: `base`, `submodel0`, ..., or the number of a sub-model; None: the first model of the file.
        with_preprocess: the new file takes pixels uint8 (N, C, H, W); by default it takes images normalised
            to float32 (N, C, H, W).
        force: replace `output` if it exists.

    The new file takes batches of any size N. It is loaded again, and its logits must equal PyTorch's. Raises
    CheckpointError for `file`, ExportError if the network cannot be exported or the logits differ,
    OutputError if `output` may not be written, ExtraError if the libraries for ONNX are not installed.
    """
    file, output = path_of(file), Path(output)
    check_export_target(output, to, force)
    model, metadata = open_for_export(file, submodel)
    return write_checked(model, metadata, to, output, with_preprocess, force)


def export_all(
    file: Path, to: ExportFormat, folder: Path, with_preprocess: bool = False, force: bool = False
) -> dict[Path, Export]:
    """Write every model of a file as `<name>.onnx` or `<name>.pt2` into `folder`; the file is opened once.

    Returns path -> export of each new file. Raises the errors of `export`. If one of the models cannot be
    exported, no new file stays.
    """
    network, metadata, header = open_weights(file)
    outputs = {folder / f"{record.name}.{to}": record.name for record in metadata.models}
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: --all writes into a folder")
    for output in outputs if folder.is_dir() else ():
        check_export_target(output, to, force)
    found = {}
    with filling(folder) as written:
        for output, name in outputs.items():
            check_export_target(output, to, force)
            model = network.model(name)
            own = exported_metadata(metadata, model, header.sha256)
            found[output] = write_checked(model, own, to, output, with_preprocess, force)
            written.append(output)
    return found


def write_checked(
    model: Model, metadata: Metadata, to: ExportFormat, output: Path, with_preprocess: bool, force: bool
) -> Export:
    """Write `model`, load the file again, and compare the logits. Raises the errors of `export`."""
    with replacing(output, force) as target:
        with stage(f"exporting {model.name} to {to}"):
            write(model, to, target, with_preprocess, metadata)
            target.flush()
        written = Path(target.name)
        with stage("comparing the export with PyTorch"):
            difference = check_logits(model, _reader(to, written, model.task, with_preprocess))
        opset = read_opset(written) if to == "onnx" else None
    return Export(metadata, output.stat().st_size, opset, difference)


def check_export_target(output: Path, to: ExportFormat, force: bool) -> None:
    """Raises OutputError if `output` may not be written, ExtraError if libraries for `to` are missing."""
    if to == "onnx":
        require_onnx()
    if output.suffix != f".{to}":
        raise OutputError(f"{output} is no name for {to}: end it in .{to}")
    check_output(output, force)


def open_for_export(file: Path, submodel: str | None) -> tuple[Model, Metadata]:
    """One model of a file, and the metadata for an export of it. Raises CheckpointError."""
    network, metadata, header = open_weights(file)
    record = metadata.models[0] if submodel is None else metadata.find(submodel)
    model = network.model(record.name)
    return model, exported_metadata(metadata, model, header.sha256)


def exported_metadata(metadata: Metadata, model: Model, parent: str) -> Metadata:
    """The metadata of an exported file. It has no digests, because it does not hold the same tensors."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    record = metadata.find(model.name).model_copy(update={"bytes": size})
    return metadata.detached(record, parent).model_copy(update={"dtype": "float32"})


def write(
    model: Model, to: ExportFormat, target: BinaryIO, with_preprocess: bool, metadata: Metadata
) -> None:
    """Write `model` into `target`. Raises ExportError if torch cannot trace or write it."""
    shape = (2, *model.task.image_shape)  # with a batch of 1, torch would fix N to 1
    example = torch.zeros(shape, dtype=torch.uint8 if with_preprocess else torch.float32)
    network = WithPreprocessing(model) if with_preprocess else model
    network = contiguous(network).eval()
    texts = labels(metadata, with_preprocess)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own internals
            (_write_onnx if to == "onnx" else _write_pt2)(network, example, target, texts)
    except OSError:  # the file cannot be written
        raise
    except Exception as error:  # modules of plug-ins may raise anything
        reason = one_line(error)[:200]
        raise ExportError(f"torch cannot export {model.name} of {metadata.arch} to {to}: {reason}") from error


def labels(metadata: Metadata, with_preprocess: bool) -> dict[str, str]:
    """The texts in an exported file: the facts that its users need without cnsn, and cnsn's own under KEY."""
    task = metadata.task
    order = "grey" if task.in_channels == 1 else "RGB"
    kind = "uint8 pixels" if with_preprocess else "float32 pixels / 255, minus mean, divided by std,"
    size = f"(N, {task.in_channels}, {task.image_size}, {task.image_size})"
    return {
        "input": f"{kind} {order} {size}",
        "output": f"logits float32 (N, {task.num_classes})",
        "class_names": json.dumps(task.class_names),
        "mean": json.dumps(task.mean),
        "std": json.dumps(task.std),
        "crop_pct": json.dumps(task.crop_pct),
        KEY: metadata.to_json(),
    }


def _write_onnx(network: nn.Module, example: Tensor, target: BinaryIO, texts: Mapping[str, str]) -> None:
    import onnx

    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
    )
    assert program is not None
    proto = program.model_proto
    _forget_the_source(proto.graph)
    onnx.helper.set_model_props(proto, dict(texts))
    onnx.save(proto, target)


def _forget_the_source(graph: Any) -> None:
    """Drop torch's notes on the source of each node, which take half of the file and name local folders."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")


def _write_pt2(network: nn.Module, example: Tensor, target: BinaryIO, texts: Mapping[str, str]) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    program.example_inputs = None  # they would be written into the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    buffer = io.BytesIO()  # torch accepts only names that end in .pt2
    torch.export.save(program, buffer, extra_files=dict(texts))
    target.write(buffer.getbuffer())


def _reader(to: ExportFormat, path: Path, task: Task, with_preprocess: bool) -> Callable[[Tensor], Tensor]:
    """Load an exported file; returns a function from pixels uint8 (N, C, H, W) to logits (N, classes)."""
    if to == "onnx":
        return OnnxModel(path).logits
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()
    if with_preprocess:
        return program
    return lambda pixels: program(normalise(pixels, task))


@torch.inference_mode()
def check_logits(model: Model, exported: Callable[[Tensor], Tensor]) -> float:
    """The largest difference between the logits of both, for random images in batches of several sizes.

    Raises ExportError if it is above TOLERANCE.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in CHECKED_BATCHES:
        pixels = torch.randint(256, (batch, *model.task.image_shape), dtype=torch.uint8, generator=generator)
        expected, found = model(normalise(pixels, model.task)), exported(pixels)
        difference = (expected - found).abs().max().item()
        limit = TOLERANCE * max(1.0, expected.abs().max().item())
        if not difference <= limit:
            raise ExportError(
                f"the export of {model.name} is not the same network: logits differ by {difference:.1e}, "
                f"more than {limit:.0e}, for {batch} random images; nothing is written"
            )
        largest = max(largest, difference)
    return largest


def read_opset(path: Path) -> int:
    """The version of the standard operators (opset) that an ONNX file uses."""
    import onnx

    versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    return int(versions[""])
