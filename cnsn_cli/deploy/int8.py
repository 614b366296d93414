"""Writing ONNX files with weights and activations in int8, with ONNX Runtime's own tool.

`cnsn export --quantize int8` calls it. It starts from the float32 ONNX file of `deploy.export`, and does not
know how a PyTorch model becomes one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cnsn_cli.data.datasets import load_recorded, sample_train
from cnsn_cli.data.origin import RECORDED, Origin
from cnsn_cli.data.split import Split
from cnsn_cli.deploy.comparison import Comparison, compare, remeasured
from cnsn_cli.deploy.export import (
    Export,
    check_export_target,
    labels,
    open_for_export,
    read_opset,
    write_checked,
)
from cnsn_cli.evaluation.accuracy import evaluate_models
from cnsn_cli.files.hub import path_of
from cnsn_cli.files.onnx_model import OnnxModel
from cnsn_cli.files.temporary import marked
from cnsn_cli.files.writer import replacing
from cnsn_cli.stages import counted, stage

CALIBRATION_IMAGES = 256
BATCH = 32


def export_int8(
    file: str | Path,
    output: str | Path,
    submodel: str | None = None,
    with_preprocess: bool = False,
    force: bool = False,
    images: int = CALIBRATION_IMAGES,
    data: Origin = RECORDED,
) -> tuple[Export, Comparison]:
    """Like `export` to ONNX, in int8. Returns the export, and the comparison with float32 on test images.

    images: the number of training images that the ranges of activations are measured on.
    data: the data set of the training and test images; RECORDED: the one that the network was trained on.

    The other arguments are those of `export`. Raises the errors of `export`, and DataError if the images are
    not there.
    """
    file, output = path_of(file), Path(output)
    check_export_target(output, "onnx", force)
    model, metadata = open_for_export(file, submodel)
    split = load_recorded("test", metadata.task, metadata.origin, data).split
    sample = sample_train(data.or_recorded(metadata.origin), metadata.task, images)
    with TemporaryDirectory() as folder, marked(Path(folder)):
        whole, small = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        write_checked(model, metadata, "onnx", whole, with_preprocess, force)
        with stage(f"quantizing, with the ranges of {counted(len(sample), 'image')}"):
            quantize(whole, small, sample)
        with stage(f"evaluating both on {counted(len(split), 'test image')}"):
            results = evaluate_models([OnnxModel(path) for path in (whole, small)], split)
        own = results[1] if data.data is None else None
        metadata = remeasured(metadata, "int8", tensor_bytes(small), own)
        _relabel(small, output, labels(metadata, with_preprocess), force)
        exported = Export(metadata, output.stat().st_size, read_opset(output), None)
        # Opened again, because ONNX Runtime fixes the number of threads then; comparisons take one thread.
        before, after = (OnnxModel(path, threads=1) for path in (whole, output))
        sizes = whole.stat().st_size, exported.bytes
        return exported, compare((before, after), sizes, results, len(split))


def quantize(source: Path, target: Path, sample: Split) -> None:
    """Static quantization with one scale a channel, in the form (QDQ) that other runtimes read too.

    `source` is a float32 ONNX file, `target` the int8 file to write; ranges are measured on `sample`.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    model = OnnxModel(source)
    batches = sample.in_order(BATCH)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            pixels = next(batches, None)
            return None if pixels is None else {"images": model.inputs(pixels).numpy()}

    with _without_advice():
        quantize_static(
            source,
            target,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hides the library's advice to optimise the network first: torch's exporter has done it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def tensor_bytes(path: Path) -> int:
    """The bytes of all weights in an ONNX file."""
    import onnx

    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer)


def _relabel(source: Path, target: Path, texts: dict[str, str], force: bool) -> None:
    import onnx

    proto = onnx.load(source)
    onnx.helper.set_model_props(proto, texts)
    with replacing(target, force, OnnxModel) as file:
        onnx.save(proto, file)
