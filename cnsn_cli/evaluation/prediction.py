"""The classes that a model predicts for pictures without labels. `cnsn predict` calls it."""

from dataclasses import dataclass
from pathlib import Path

from cnsn_cli.data.datasets import open_images, readable
from cnsn_cli.data.image_folder import SUFFIXES, images_below, left_out_note
from cnsn_cli.device import choose_device
from cnsn_cli.errors import DataError
from cnsn_cli.evaluation.accuracy import all_logits
from cnsn_cli.files.model_file import open_file
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


def predict_images(
    file: Path,
    paths: list[Path],
    submodel: str | None = None,
    top: int = 5,
    device: str = "auto",
    skip_bad: bool = False,
) -> Predictions:
    """For every picture its `top` most likely classes.

    `paths` are pictures and folders of pictures. `skip_bad` reads all pictures first, and leaves out those
    that cannot be read. Raises CheckpointError for `file`, DataError for a picture that cannot be read,
    DeviceError for `device`.
    """
    chosen = choose_device(device)
    images, notes = pictures(paths)
    model = open_file(file, chosen).find(submodel)
    images, skipped = readable(images) if skip_bad else (images, ())
    split = open_images(images, model.task)
    with stage(f"predicting {counted(len(images), 'image')}"):
        (logits,) = all_logits([model], split)
    shares, classes = logits.double().softmax(1).sort(stable=True, dim=1, descending=True)
    names = model.task.class_names
    predictions = [
        Prediction(image, [Guess(names[i], p) for i, p in zip(numbers[:top], row[:top], strict=True)])
        for image, numbers, row in zip(images, classes.tolist(), shares.tolist(), strict=True)
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
