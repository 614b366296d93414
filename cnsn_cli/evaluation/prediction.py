"""The classes that a model predicts for pictures without labels. Python users and `cnsn predict` call it."""

from dataclasses import dataclass
from pathlib import Path

from cnsn_cli.data.datasets import open_images, readable
from cnsn_cli.data.image_folder import SUFFIXES, images_below, left_out_note
from cnsn_cli.device import choose_device
from cnsn_cli.errors import ArgumentError, DataError
from cnsn_cli.evaluation.accuracy import all_logits
from cnsn_cli.files.hub import path_of
from cnsn_cli.files.model_file import open_file
from cnsn_cli.files.paths import Paths, listed
from cnsn_cli.stages import counted, stage


@dataclass(frozen=True)
class Guess:
    """A class and its `probability` (0..1), the softmax of the logits."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of a picture, the most likely first."""

    image: Path
    guesses: list[Guess]


@dataclass(frozen=True)
class Predictions:
    """The name of the `model` that predicted, and what it predicts for `images`.

    `skipped` has a line for each picture that was left out because it cannot be read; `notes` say which
    other pictures were left out.
    """

    model: str
    images: list[Prediction]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def predict(
    file: str | Path,
    images: Paths,
    submodel: str | None = None,
    top: int = 5,
    device: str = "auto",
    skip_bad: bool = False,
) -> Predictions:
    """The most likely classes of pictures.

    Arguments:
        file: A whole network, a detached model, or an exported ONNX file.
        images: One or several: pictures, and folders of pictures.
        submodel: `base`, `submodel0`, ..., or the number of a sub-model; None: the first model of the file.
        top: The number of classes for each picture.
        device: `auto` (the fastest one), `cpu`, `cuda` or `mps`.
        skip_bad: Read all pictures first, and leave out those that cannot be read.

    Raises CheckpointError for `file`, DataError for a picture that cannot be read, DeviceError for `device`,
    ArgumentError if `top` is below 1 or there is no picture.
    """
    if top < 1:
        raise ArgumentError(f"top is {top}: give a number of at least 1")
    chosen = choose_device(device)
    found, notes = pictures(listed(images, "images"))
    model = open_file(path_of(file), chosen).find(submodel)
    found, skipped = readable(found) if skip_bad else (found, ())
    split = open_images(found, model.task)
    with stage(f"predicting {counted(len(found), 'image')}"):
        (logits,) = all_logits([model], split)
    shares, classes = logits.double().softmax(1).sort(stable=True, dim=1, descending=True)
    names = model.task.class_names
    predictions = [
        Prediction(image, [Guess(names[i], p) for i, p in zip(numbers[:top], row[:top], strict=True)])
        for image, numbers, row in zip(found, classes.tolist(), shares.tolist(), strict=True)
    ]
    return Predictions(model.name, predictions, skipped, tuple(notes))


def pictures(paths: list[Path]) -> tuple[list[Path], list[str]]:
    """The files among `paths`, and all pictures in its folders and their subfolders. Raises DataError.

    The second value says which other pictures these folders have.
    """
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"no image or folder {path}")
        if not path.is_dir():
            found.append(path)
            continue
        images, left_out = images_below(str(path))
        more = [left_out_note(path, left_out)] if left_out else []
        if not images:
            expected = f"expected files that end in {', '.join(SUFFIXES)}"
            raise DataError("; ".join([f"no images in {path}: {expected}", *more]))
        notes += more
        found += map(Path, images)
    return found, notes
