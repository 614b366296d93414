"""A table of images: a CSV file whose rows name an image, its class and maybe its split.

sources.py calls this module. It reads the table and no image, and knows no task.
"""

import csv
import os
from collections.abc import Iterator
from typing import NamedTuple

from cnsn_cli.choices import SplitName
from cnsn_cli.data.columns import IMAGE, LABEL, column
from cnsn_cli.errors import DataError
from cnsn_cli.task import class_name

SPLIT = "split"  # the column that says which split an image belongs to
SPLITS = ("train", "test", "val")


class Columns(NamedTuple):
    """The numbers of the columns of images, classes and splits; None: no column has splits."""

    image: int
    label: int
    split: int | None


class Row(NamedTuple):
    """An image: its `number` as spreadsheets count rows, its path as written, class and split."""

    number: int
    image: str
    label: str
    split: str


class Table(NamedTuple):
    """The rows of the table `path`, and whether they say their splits."""

    path: str
    rows: list[Row]
    has_splits: bool

    def image(self, row: Row) -> str:
        """The path of the image of a row, which is relative to the table."""
        return os.path.join(os.path.dirname(self.path), row.image)


def read_table(path: str, image_column: str | None = None, label_column: str | None = None) -> Table:
    """Read a table; without the names of columns, the usual ones are found.

    The table is UTF-8 text, with commas between cells and headings in its first row. Raises DataError, which
    names the row.
    """
    records = _records(path)
    _, headings = next(records, (1, []))
    if not headings:
        raise DataError(f"{path} is empty: its first row names the columns, such as image,label,split")
    columns = _columns(path, headings, image_column, label_column)
    rows = [_row(f"row {number} of {path}", number, headings, columns, cells) for number, cells in records]
    if not rows:
        raise DataError(f"{path} has no rows below its headings {', '.join(headings)}")
    return Table(path, rows, columns.split is not None)


def _columns(path: str, headings: list[str], image_column: str | None, label_column: str | None) -> Columns:
    for name in headings:
        if name and headings.count(name) > 1:
            raise DataError(f"{path} has several columns {name!r}: rename all but one")
    image, label = column(headings, image_column, IMAGE, path), column(headings, label_column, LABEL, path)
    if image == label:
        raise DataError(f"the column {image!r} of {path} cannot hold both images and classes")
    split = headings.index(SPLIT) if SPLIT in headings else None
    return Columns(headings.index(image), headings.index(label), split)


def _records(path: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each row that is not blank, the headings first."""
    number = 0
    if not os.path.isfile(path):  # a pipe would wait forever
        raise DataError(f"cannot read {path}: there is no such file")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # with a byte order mark or without
            for number, cells in enumerate(csv.reader(file, strict=True), 1):
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield number, stripped
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"cannot read row {number + 1} of {path}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _row(where: str, number: int, headings: list[str], columns: Columns, cells: list[str]) -> Row:
    if len(cells) != len(headings):
        raise DataError(f"{where} has {len(cells)} cells, and the table has {len(headings)} headings")
    for place in columns:
        if place is not None and not cells[place]:
            raise DataError(f"{where} has nothing in the column {headings[place]!r}")
    image, split = cells[columns.image], "" if columns.split is None else cells[columns.split]
    if "\0" in image:
        raise DataError(f"{where} has a NUL character in the column {headings[columns.image]!r}")
    if split and split not in SPLITS:
        raise DataError(f"{where} has the split {split!r}: choose {', '.join(SPLITS)}")
    return Row(number, image, class_name(cells[columns.label]), split)


def rows_of(table: Table, split: SplitName, test_data: str | None) -> list[Row]:
    """The rows of one split. `test_data` names the table of the test images, if that is another one.

    A table without splits has test images, or, beside `test_data`, training images. Raises DataError if the
    table does not say which images belong to the split.
    """
    if split == "train" and table.has_splits and test_data:
        raise DataError(f"{table.path} has a column {SPLIT!r} of its own: leave out --test-data {test_data}")
    if split == "train" and not table.has_splits and not test_data:
        raise DataError(
            f"{table.path} has no column {SPLIT!r} that says train or test: add it, or name a table of test "
            "images with --test-data"
        )
    if not table.has_splits:
        return table.rows
    for name in ("train",) if split == "train" else ("test", "val"):
        if found := [row for row in table.rows if row.split == name]:
            return found
    raise DataError(f"no row of {table.path} has the split {'train' if split == 'train' else 'test or val'}")
