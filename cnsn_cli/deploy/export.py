"""Models for runtimes that know nothing of cnsn: ONNX and torch.export, checked after they are written."""

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
from cnsn_cli.files.metadata import KEY, Metadata
from cnsn_cli.files.model_file import open_weights
from cnsn_cli.files.onnx_model import OnnxModel, require_onnx
from cnsn_cli.files.writer import check_output, replacing
from cnsn_cli.network.memory_format import contiguous
from cnsn_cli.network.model import Model
from cnsn_cli.task import Task

TOLERANCE = 1e-4  # of the largest logit, or of 1 where all are smaller
CHECKED_BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Export:
    """A file that was written. `metadata` is what it says of itself.

    `opset` is that of an ONNX file as it was read back, `difference` the largest between its logits and
    PyTorch's, None where they are not meant to be the same.
    """

    metadata: Metadata
    bytes: int
    opset: int | None
    difference: float | None


class WithPreprocessing(nn.Module):
    """A model that takes pixels uint8 (N, C, H, W): scaling and normalisation are part of it."""

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
    """Write one model of a network, or a detached model, for ONNX runtimes or torch.export.

    The file takes batches of any size: images normalised to float32 (N, C, H, W), or pixels uint8
    `with_preprocess`. It is loaded again and must return PyTorch's logits. Raises CheckpointError for `file`,
    ExportError where the network cannot be exported or the export differs, OutputError, ExtraError.
    """
    file, output = Path(file), Path(output)
    check_export_target(output, to, force)
    model, metadata = open_for_export(file, submodel)
    return write_checked(model, metadata, to, output, with_preprocess)


def write_checked(
    model: Model, metadata: Metadata, to: ExportFormat, output: Path, with_preprocess: bool
) -> Export:
    """Write `model`, load the file again, and compare the logits; raises like `export`."""
    with replacing(output) as target:
        write(model, to, target, with_preprocess, metadata)
        target.flush()
        written = Path(target.name)
        difference = check(model, _reader(to, written, model.task, with_preprocess))
        opset = read_opset(written) if to == "onnx" else None
    return Export(metadata, output.stat().st_size, opset, difference)


def check_export_target(output: Path, to: ExportFormat, force: bool) -> None:
    """Raises OutputError where `output` may not be written, ExtraError where libraries for it lack."""
    if to == "onnx":
        require_onnx()
    if output.suffix != f".{to}":
        raise OutputError(f"{output} is no name for {to}: end it in .{to}")
    check_output(output, force)


def open_for_export(file: Path, submodel: str | None) -> tuple[Model, Metadata]:
    """One model of a file, and what an export of it says of itself. Raises CheckpointError."""
    network, metadata, header = open_weights(file)
    record = metadata.models[0] if submodel is None else metadata.find(submodel)
    model = network.model(record.name)
    return model, exported_metadata(metadata, model, header.sha256)


def exported_metadata(metadata: Metadata, model: Model, parent: str) -> Metadata:
    """What an exported file says of its model; digests are those of tensors that it does not hold."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    record = metadata.find(model.name).model_copy(update={"bytes": size})
    changes = {"kind": "detached", "models": [record], "sha256": {}, "parent": parent, "dtype": "float32"}
    return metadata.model_copy(update=changes)


def write(
    model: Model, to: ExportFormat, target: BinaryIO, with_preprocess: bool, metadata: Metadata
) -> None:
    """Raises ExportError where torch cannot trace or write the network."""
    shape = (2, *model.task.image_shape)  # of a batch of 1, torch would conclude that all have 1
    example = torch.zeros(shape, dtype=torch.uint8 if with_preprocess else torch.float32)
    network = WithPreprocessing(model) if with_preprocess else model
    network = contiguous(network).eval()
    texts = labels(metadata, with_preprocess)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the insides of torch
            (_write_onnx if to == "onnx" else _write_pt2)(network, example, target, texts)
    except OSError:  # of the file
        raise
    except Exception as error:  # whatever a plug-in's modules make of it
        reason = one_line(error)[:200]
        raise ExportError(f"torch cannot export {model.name} of {metadata.arch} to {to}: {reason}") from error


def labels(metadata: Metadata, with_preprocess: bool) -> dict[str, str]:
    """The metadata of an exported file: what a stranger to cnsn must know in order to use it, and KEY."""
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
    """Drop torch's notes on where each node comes from: half the file, with the folders of this machine."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")


def _write_pt2(network: nn.Module, example: Tensor, target: BinaryIO, texts: Mapping[str, str]) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    program.example_inputs = None  # would be written into the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the folders of this machine
    buffer = io.BytesIO()  # torch wants names to end in .pt2
    torch.export.save(program, buffer, extra_files=dict(texts))
    target.write(buffer.getbuffer())


def _reader(to: ExportFormat, path: Path, task: Task, with_preprocess: bool) -> Callable[[Tensor], Tensor]:
    """The file in a fresh runtime: from pixels uint8 (N, C, H, W) to logits."""
    if to == "onnx":
        return OnnxModel(path).logits
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()
    if with_preprocess:
        return program
    return lambda pixels: program(normalise(pixels, task))


@torch.inference_mode()
def check(model: Model, exported: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of logits for random images, in batches of several sizes.

    Raises ExportError where it is above TOLERANCE.
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
    """The version of the standard operators that an ONNX file is written in."""
    import onnx

    versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    return int(versions[""])
