"""The gain of ONNX Runtime and of int8: each model in eager PyTorch, as ONNX, and as int8 ONNX.

The three versions, as `cnsn_cli.load` and `cnsn export` make them, take turns to classify one image on one
thread. `x PyTorch` is the time of PyTorch divided by that of the version, by medians and by minima.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from timing import interleave, markdown, report

from cnsn_cli.data.pixels import normalise
from cnsn_cli.deploy.export import export
from cnsn_cli.deploy.int8 import export_int8
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import ModelRecord, read_metadata
from cnsn_cli.files.onnx_model import OnnxModel
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.model import Model

COLUMNS = (
    "model", "runtime", "bytes", "/ float32", "accuracy", "median ms", "minimum ms",
    "x PyTorch (median)", "(minimum)",
)  # fmt: skip


def rows(file: Path, model: Model, record: ModelRecord, rounds: int) -> Iterator[list[str]]:
    with TemporaryDirectory() as folder:
        whole, small = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        export(file, "onnx", whole, model.name)
        comparison = export_int8(file, small, model.name)[1]
        with torch.inference_mode():
            times = interleave(variants(model, whole, small), rounds)
    before, after = comparison.before, comparison.after
    facts = (
        (f"{record.bytes:,} (tensors)", "", record.accuracy),
        (f"{before.bytes:,}", "1.0000", before.accuracy),
        (f"{after.bytes:,}", f"{after.bytes / before.bytes:.4f}", after.accuracy),
    )
    eager = times["PyTorch"]
    for (runtime, seconds), (size, share, accuracy) in zip(times.items(), facts, strict=True):
        middle = statistics.median(seconds)
        gains = (statistics.median(eager) / middle, min(eager) / min(seconds))
        speeds = [f"{value * 1e3:.3f}" for value in (middle, min(seconds))]
        yield [
            model.name,
            runtime,
            size,
            share,
            f"{accuracy:.2%}",
            *speeds,
            *(f"{math.floor(100 * gain) / 100:.2f}" for gain in gains),
        ]


def variants(model: Model, whole: Path, small: Path) -> dict[str, Callable[[], object]]:
    pixels = torch.randint(256, (1, *model.task.image_shape), dtype=torch.uint8)
    images = normalise(pixels, model.task)
    exported = {
        "ONNX Runtime": OnnxModel(whole, threads=1),
        "ONNX Runtime, int8": OnnxModel(small, threads=1),
    }
    return {
        "PyTorch": lambda: model(images),
        **{name: lambda network=network: network(images) for name, network in exported.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="a network that cnsn train wrote")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    metadata = read_metadata(given.file, read_header(given.file))
    found = [
        row
        for model, record in zip(load(given.file).models(), metadata.models, strict=True)
        for row in rows(given.file, model, record, given.rounds)
    ]
    text = f"batch 1, 1 thread, {given.rounds} rounds\n\n{markdown(COLUMNS, found)}"
    report(f"runtimes: {metadata.arch}", text, given.write)


if __name__ == "__main__":
    main()
