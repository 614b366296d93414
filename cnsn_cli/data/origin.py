"""Where images and labels come from, in the words of the user, as one value.

Commands, files and runs pass it on. `sources` opens it. This module reads no image and imports no torch.
"""

import re
from pathlib import Path
from typing import NamedTuple

from cnsn_cli.choices import SplitName
from cnsn_cli.errors import DataError

HUB = "hf:"  # before the name or the folder of a data set of Hugging Face
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # on the Hub
NAMED = ("cifar10", "cifar100", "digits")
KINDS = f"{', '.join(NAMED)}, a folder with train/ and test/ or val/, a table.csv, or hf:NAME-OR-FOLDER"


class Origin(NamedTuple):
    """A data set.

    data: one of NAMED, an image folder, a table of images, or `hf:` and a data set of Hugging Face; None:
        nobody has said so.
    data_dir: the folder that CIFAR is read from or downloaded to.
    image_column, label_column: columns of a table or of Hugging Face; None: they have usual names.
    test_data: a table of the test images; `data` is then a table of the training images.
    """

    data: str | None = None
    data_dir: str | Path = "data"
    image_column: str | None = None
    label_column: str | None = None
    test_data: str | None = None

    def place(self, split: SplitName) -> str:
        """What the user named for the images of a split."""
        return (split == "test" and self.test_data) or self.data or ""

    def columns(self) -> dict[str, str | None]:
        """What a table needs beside its name."""
        names = ("image_column", "label_column", "test_data")
        return {name: getattr(self, name) for name in names}

    def is_here(self) -> bool:
        """Whether the data have a name, or are in the file system."""
        data = self.data or ""
        if data in NAMED:
            return True
        return Path(data).is_file() if is_table(data) else bool(data) and Path(hub_name(data)).is_dir()

    def or_recorded(self, recorded: "Origin") -> "Origin":
        """This data set; if it has no name, the one that a file records, with the columns that are given."""
        if self.data:
            return self
        return recorded._replace(
            data_dir=self.data_dir,
            image_column=self.image_column or recorded.image_column,
            label_column=self.label_column or recorded.label_column,
        )


def is_hub(data: str) -> bool:
    """Whether `data` names a data set of Hugging Face, on the Hub or in a folder."""
    return data.startswith(HUB)


def hub_name(data: str) -> str:
    """`data` without `hf:`."""
    return data.removeprefix(HUB)


def may_be_name(data: str) -> bool:
    """Whether `data` can be a name on the Hub, such as `hf:user/photos`."""
    return is_hub(data) and NAME.fullmatch(hub_name(data)) is not None


def check_recorded(origin: Origin) -> None:
    """Raises DataError if the data would have to be fetched: names that files record never are."""
    data = origin.data or ""
    if is_hub(data) and not origin.is_here():
        raise DataError(f"{data} is not here, and a name in a file is not fetched: give --data {data}")


RECORDED = Origin()  # for a parameter: the data that the file records


def is_table(data: str) -> bool:
    """Whether `data` is the name of a table of images, and not of a folder."""
    return not is_hub(data) and data.lower().endswith(".csv") and not Path(data).is_dir()
