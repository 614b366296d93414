"""What a smaller file costs and saves: two files of one model, side by side."""

import statistics
from dataclasses import dataclass

from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.evaluation.latency import time_models
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.files.model_file import Classifier


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


def compare(
    models: tuple[Classifier, Classifier], sizes: tuple[int, int], results: list[ModelResult], images: int
) -> Comparison:
    """A model and its smaller version, timed in turns for one image on one thread.

    `sizes` are the bytes of their files. `results` are those on `images` test images, none for 0.
    """
    figures = [
        Figures(
            size,
            result.accuracy if result else None,
            result.loss if result else None,
            statistics.median(seconds),
        )
        for size, result, seconds in zip(sizes, results or (None, None), time_models(models), strict=True)
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
