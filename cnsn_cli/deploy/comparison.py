"""Two files of one model, compared: what the smaller one saves in bytes and costs in accuracy.

`deploy.recompute` and `deploy.int8` call it. It does not know how the smaller file was made.
"""

import statistics
from dataclasses import dataclass

from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.evaluation.latency import time_models
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.files.model_file import Classifier


@dataclass(frozen=True)
class Figures:
    """The size of a file; the accuracy (0..1), loss and median latency (seconds an image) of its model."""

    bytes: int
    accuracy: float | None
    loss: float | None
    latency: float


@dataclass(frozen=True)
class Comparison:
    """The figures of a model in float32 (`before`) and in a smaller file (`after`).

    Accuracy and loss are measured on `images` test images, latency on one thread.
    """

    before: Figures
    after: Figures
    images: int


def compare(
    models: tuple[Classifier, Classifier], sizes: tuple[int, int], results: list[ModelResult], images: int
) -> Comparison:
    """Compare a model and its smaller version, which take turns to classify one image on one thread.

    `sizes` are the bytes of their files. `results` are measured on `images` test images; they are empty if
    `images` is 0.
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

    Accuracy and loss are those of `result` if the old ones were measured on test images too, else unknown.
    """
    comparable = result if metadata.selection and metadata.selection.images == "test" else None
    figures = {"accuracy": comparable and comparable.accuracy, "loss": comparable and comparable.loss}
    record = metadata.models[0].model_copy(update={"bytes": size, **figures})
    return metadata.model_copy(update={"models": [record], "dtype": dtype})
