"""Where images come from: a name, an image folder, a table of images, or Hugging Face.

Nothing is decoded here yet. datasets.py makes splits from these sources. This module knows no task and no
image size.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import URLError

from PIL import Image

from cnsn_cli.choices import SplitName
from cnsn_cli.data import hub_datasets
from cnsn_cli.data.image_files import read_image
from cnsn_cli.data.image_folder import find_images, split_folder
from cnsn_cli.data.origin import KINDS, NAMED, Origin, is_hub, is_table
from cnsn_cli.data.table import Row, Table, read_table, rows_of
from cnsn_cli.data.views import Reader, View, seen
from cnsn_cli.errors import DataError
from cnsn_cli.stages import stage

if TYPE_CHECKING:
    from numpy import ndarray

DOWNLOAD_PATIENCE = 30  # seconds to wait for a server that sends nothing


class Source(NamedTuple):
    """Images that are not read yet: `read(i)` reads image i, and `read(i, view)` what a View shows of it.

    Other processes can read, too.
    `files` are their paths, if they are files; `notes` are those of a Dataset.
    """

    class_names: tuple[str, ...]
    labels: list[int]
    read: Reader
    files: Sequence[str] = ()
    notes: tuple[str, ...] = ()


def open_source(origin: Origin, split: SplitName) -> Source:
    """Find the images of one split without reading them. Raises DataError."""
    _check_options(origin)
    place = origin.place(split)
    if is_table(place):
        return _from_table(origin, split)
    if is_hub(place):
        return _from_hub(origin, split)
    if place == "digits":
        return _digits(split)
    if place in NAMED:
        return _cifar(place, split, Path(origin.data_dir))
    return _folder(place, split)


def _check_options(origin: Origin) -> None:
    """Raises DataError for options that only tables have, and for test images that are in no table."""
    data = origin.data or ""
    options = {
        "--test-data": origin.test_data,
        "--image-column": origin.image_column,
        "--label-column": origin.label_column,
    }
    for option, given in options.items():
        columns = is_table(data) or (is_hub(data) and option != "--test-data")
        if given is not None and not columns:
            raise DataError(f"{option} goes with a table.csv, and {data} is none: leave it out")
    if origin.test_data is not None and not is_table(origin.test_data):
        raise DataError(f"--test-data {origin.test_data} is no table.csv")


def contents(origin: Origin, split: SplitName) -> Iterator[tuple[str, str]]:
    """The files of one split: a name that stays the same when the data move, and the path."""
    place = origin.place(split)
    if is_table(place):
        table, rows = _rows(origin, split)
        yield from ((f"{row.image}\0{row.label}", table.image(row)) for row in rows)
    elif is_hub(place):
        yield from hub_datasets.contents(origin, split)
    elif place not in NAMED:
        for path in open_source(origin, split).files:
            yield path.removeprefix(f"{Path(place)}{os.sep}"), path


def take(source: Source, chosen: list[int]) -> Source:
    """Return the images `chosen` of a source, in this order."""
    labels = [source.labels[number] for number in chosen]
    files = [source.files[number] for number in chosen] if source.files else ()
    return source._replace(labels=labels, read=partial(_chosen, source.read, chosen), files=files)


def _chosen(read: Reader, chosen: list[int], number: int, view: View | None = None) -> Image.Image:
    return read(chosen[number], view)


def _digits(split: SplitName) -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8x8, values 0..16; every fifth digit is for the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype("uint8")
    chosen = [i for i in range(len(grey)) if (i % 5 == 0) == (split == "test")]
    labels = [int(digits.target[i]) for i in chosen]
    return Source(tuple("0123456789"), labels, partial(_from_array, grey[chosen]))


def _cifar(data: str, split: SplitName, data_dir: Path) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[data]
    dataset = _existing_or_downloaded(kind, data_dir, train=split == "train")
    return Source(tuple(dataset.classes), dataset.targets, partial(_from_array, dataset.data))


def _existing_or_downloaded(kind: Any, data_dir: Path, train: bool) -> Any:
    try:
        return kind(data_dir, train=train, download=False)
    except RuntimeError:  # there is no unpacked folder, or the folder is damaged
        pass
    damaged = " the present copy is incomplete or damaged:" if (data_dir / kind.base_folder).exists() else ""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_PATIENCE)
    try:
        with stage(f"downloading {kind.__name__}"):
            return kind(data_dir, train=train, download=True)
    except (URLError, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"cannot download {kind.__name__} ({error}):{damaged} put {kind.filename} or the folder "
            f"{kind.base_folder} into {data_dir}/ (--data-dir), or try --data digits, which works offline"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _folder(data: str, split: SplitName) -> Source:
    if not data or not Path(data).is_dir():
        raise DataError(f"no data set or folder {data!r}: choose {KINDS}")
    folder, notes = split_folder(data, split)
    class_names, samples, left_out = find_images(folder)
    if not samples:
        expected = f"expected {folder}/<class>/<image>, one folder a class"
        raise DataError("; ".join([f"no images in {folder}: {expected}", *left_out]))
    _check_classes(class_names, [label for _, label in samples], split, str(folder), left_out)
    return image_source(class_names, samples, notes + left_out)


def _from_table(origin: Origin, split: SplitName) -> Source:
    table, rows = _rows(origin, split)
    class_names = sorted({row.label for row in rows})
    numbers = {name: number for number, name in enumerate(class_names)}
    source = image_source(tuple(class_names), [(table.image(row), numbers[row.label]) for row in rows])
    return source._replace(read=partial(_read_row, table, rows))


def _from_hub(origin: Origin, split: SplitName) -> Source:
    found = hub_datasets.open_images(origin, split)
    _check_classes(found.class_names, found.labels, split, str(origin.data))
    return Source(found.class_names, found.labels, found.read, notes=found.notes)


def _rows(origin: Origin, split: SplitName) -> tuple[Table, list[Row]]:
    table = read_table(origin.place(split), origin.image_column, origin.label_column)
    return table, rows_of(table, split, origin.test_data)


def _check_classes(
    class_names: tuple[str, ...], labels: list[int], split: SplitName, place: str, notes: Sequence[str] = ()
) -> None:
    """Raises DataError if a class has no training images."""
    empty = set(range(len(class_names))) - set(labels)
    if empty and split == "train":
        raise DataError("; ".join([f"no images of class {class_names[min(empty)]!r} in {place}", *notes]))


def image_source(
    class_names: tuple[str, ...], samples: Sequence[tuple[str, int]], notes: tuple[str, ...] = ()
) -> Source:
    """Make a source of `samples`, which are paths and class numbers."""
    paths = [path for path, _ in samples]
    return Source(class_names, [label for _, label in samples], partial(_read, paths), paths, notes)


def _from_array(pixels: "ndarray[Any, Any]", number: int, view: View | None = None) -> Image.Image:
    image = Image.fromarray(pixels[number])
    return image if view is None else seen(view, image)


def _read(paths: list[str], number: int, view: View | None = None) -> Image.Image:
    return read_image(paths[number], view)


def _read_row(table: Table, rows: list[Row], number: int, view: View | None = None) -> Image.Image:
    try:
        return read_image(table.image(rows[number]), view)
    except DataError as error:
        raise DataError(f"row {rows[number].number} of {table.path}: {error}") from error
