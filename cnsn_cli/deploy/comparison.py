"""What a smaller file costs and saves: two files of one model, side by side."""

from dataclasses import dataclass
from pathlib import Path

from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.evaluation.bench import bench
from cnsn_cli.files.metadata import Metadata


@dataclass(frozen=True)
class Figures:
    """The size of a file, how its model does on test images, and its median time for an image in seconds."""

    bytes: int
    accuracy: float | None
    loss: float | None
    latency: float


@dataclass(frozen=True)
class Comparison:
    """A model in float32, and in the numbers of a smaller file: on `images` test images, on one thread."""

    before: Figures
    after: Figures
    images: int


def compare(files: tuple[Path, Path], results: list[ModelResult], images: int) -> Comparison:
    """Two files of one model each, timed in turns; `results` are those on `images` images, none for 0."""
    speeds = bench(files)
    figures = [
        Figures(
            file.stat().st_size,
            result.accuracy if result else None,
            result.loss if result else None,
            speed.p50,
        )
        for file, result, speed in zip(files, results or (None, None), speeds, strict=True)
    ]
    return Comparison(figures[0], figures[1], images)


def remeasured(metadata: Metadata, dtype: str, size: int, result: ModelResult | None) -> Metadata:
    """The metadata of a detached model whose tensors became `dtype`, with `size` bytes.

    Its accuracy and loss are those of `result` where they were chosen on test images too, else unknown.
    """
    comparable = result if metadata.selection and metadata.selection.images == "test" else None
    figures = {"accuracy": comparable and comparable.accuracy, "loss": comparable and comparable.loss}
    record = metadata.models[0].model_copy(update={"bytes": size, **figures})
    return metadata.model_copy(update={"models": [record], "dtype": dtype})
