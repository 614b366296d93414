"""Data sets of Hugging Face, with their library `datasets`: folders of Parquet files, or names on the Hub.

sources.py calls this module. Pictures are decoded as those of folders are. This module knows no task.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from PIL import Image

from cnsn_cli.choices import SplitName
from cnsn_cli.data.columns import IMAGE, LABEL, column
from cnsn_cli.data.image_files import read_image
from cnsn_cli.data.origin import Origin, hub_name, may_be_name
from cnsn_cli.data.views import Reader, View
from cnsn_cli.errors import DataError, ExtraError, one_line
from cnsn_cli.stages import stage
from cnsn_cli.task import class_name

OLDEST = 4  # the first version of the library that never runs code from the Hub
SPLITS: dict[SplitName, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation")}


class Images(NamedTuple):
    """The images of a split, as in a Source."""

    class_names: tuple[str, ...]
    labels: list[int]
    read: Reader
    notes: tuple[str, ...]


def open_images(origin: Origin, split: SplitName) -> Images:
    """Find the images of one split without decoding them.

    The library copies them into its cache, where any image can be read at any time. Raises DataError, and
    ExtraError if the library is not installed.
    """
    data = origin.place(split)
    with stage(f"opening the {split} images of {data}"):
        name, dataset, notes = _split(_builder(data), origin, split)
    kind, features = _library().Image, dataset.features
    pictures = [key for key, feature in features.items() if isinstance(feature, kind)]
    image = column(features, origin.image_column, IMAGE, data, pictures)
    class_names, labels = _labels(dataset, _label_column(dataset, origin), f"{data} {name}")
    try:
        encoded = dataset.select_columns([image]).cast_column(image, kind(decode=False))
    except Exception as error:  # pyarrow raises many kinds
        raise DataError(f"the column {image!r} of {data} has no images: choose --image-column") from error
    return Images(class_names, labels, partial(_read, encoded, image, f"{data} {name}"), notes)


def contents(origin: Origin, split: SplitName) -> Iterator[tuple[str, str]]:
    """The files of one split: their relative names and their paths.

    A file on the Hub has a name that includes the revision, and no path.
    """
    data = origin.place(split)
    builder = _builder(data)
    name, _, _ = _split(builder, origin, split)
    folder = os.path.realpath(hub_name(data))
    for file in (builder.config.data_files or {}).get(name) or [builder.hash]:
        path = os.path.realpath(file)
        yield (os.path.relpath(path, folder), path) if os.path.exists(path) else (file, "")


def _library() -> Any:
    """The library `datasets`. Raises ExtraError if there is none, or an old one."""
    remedy = "pip install 'cnsn-cli[datasets]'"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import datasets
    except ModuleNotFoundError as error:
        raise ExtraError(f"--data hf: needs the library datasets: {remedy}") from error
    version = getattr(datasets, "__version__", None)
    if version is None:  # a folder of the user that has this name
        raise ExtraError(f"--data hf: needs the library datasets: {remedy}")
    if int(version.split(".")[0]) < OLDEST:
        raise ExtraError(f"--data hf: needs datasets {OLDEST} or newer, and {version} is here: {remedy}")
    return datasets


def _builder(data: str) -> Any:
    """What the library knows about a data set before it opens it. A folder comes before a name."""
    name, library = hub_name(data), _library()
    is_folder = os.path.isdir(name)
    if not is_folder and (os.path.exists(name) or not may_be_name(data)):
        raise DataError(f"{data}: there is no such folder, and the Hub has no such names")
    with _calm(data):
        return library.load_dataset_builder(os.path.abspath(name) if is_folder else name)


def _split(builder: Any, origin: Origin, split: SplitName) -> tuple[str, Any, tuple[str, ...]]:
    """The name of a split in the data set, the split, and a note if a split without labels was left out."""
    data = origin.place(split)
    with _calm(data):
        builder.download_and_prepare()
        splits = builder.as_dataset()
    found = [name for name in SPLITS[split] if name in splits]
    if not found:
        raise DataError(f"{data} has no split {' or '.join(SPLITS[split])}: it has {', '.join(splits)}")
    first, last = found[0], found[-1]
    if first != last and not _is_labelled(splits[first], origin):
        note = f"the split {first} of {data} has no labels: the split {last} has the test images"
        return last, splits[last], (note,)
    return first, splits[first], ()


def _is_labelled(dataset: Any, origin: Origin) -> bool:
    name = _label_column(dataset, origin)
    return any(_is_label(dataset.features[name], value) for value in dataset[name][:])


def _is_label(feature: Any, value: Any) -> bool:
    """Whether a value says a class; of many test images on the Hub, the class is -1."""
    if value is None or value == "":
        return False
    return not hasattr(feature, "names") or 0 <= value < len(feature.names)


def _label_column(dataset: Any, origin: Origin) -> str:
    kind, features = _library().ClassLabel, dataset.features
    classes = [key for key, feature in features.items() if isinstance(feature, kind)]
    return column(features, origin.label_column, LABEL, str(origin.data), classes)


def _labels(dataset: Any, name: str, where: str) -> tuple[tuple[str, ...], list[int]]:
    """The names of the classes, and the class number of each image."""
    feature, values = dataset.features[name], dataset[name][:]
    kind = str(getattr(feature, "dtype", ""))
    if not re.fullmatch(r"u?int\d+|(large_)?string", kind):  # a ClassLabel is int64
        raise DataError(f"the column {name!r} of {where} has {feature}, no classes: choose --label-column")
    for number, value in enumerate(values):
        if not _is_label(feature, value):
            raise DataError(f"{where}[{number}] has no class in the column {name!r}: {value!r}")
    names = getattr(feature, "names", None)
    texts = [class_name(names[value] if names else str(value)) for value in values]
    ordered = names or (sorted(texts) if "string" in kind else sorted(values))
    class_names = tuple(dict.fromkeys(class_name(str(name)) for name in ordered))
    numbers = {known: number for number, known in enumerate(class_names)}
    return class_names, [numbers[text] for text in texts]


def _read(dataset: Any, image: str, where: str, number: int, view: View | None = None) -> Image.Image:
    cell = dataset[number][image] or {}
    encoded, path = cell.get("bytes"), cell.get("path")
    if encoded is None and path:
        return read_image(path, view)
    return read_image(f"{where}[{number}]", view, encoded or b"")


@contextmanager
def _calm(data: str) -> Iterator[None]:
    """Hides what the library prints, and turns its errors into a DataError."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before, bars = logging.root.manager.disable, not are_progress_bars_disabled()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if bars:
                disable_progress_bars()
            yield
    except Exception as error:  # of pyarrow, of the Hub, of the network, of the disk
        raise DataError(f"cannot open {data}: {one_line(error)}") from error
    finally:
        logging.disable(before)
        if bars:
            enable_progress_bars()
