"""Where images and labels come from, in the words of the user, as one value.

Commands, files and runs pass it on. `sources` opens it. This module reads no image and imports no torch.
"""

from pathlib import Path
from typing import NamedTuple

from cnsn_cli.choices import SplitName

NAMED = ("cifar10", "cifar100", "digits")
KINDS = f"{', '.join(NAMED)}, an image folder with train/ and test/ or val/, or a table.csv"


class Origin(NamedTuple):
    """A data set.

    data: one of NAMED, an image folder, or a table of images; None: nobody has said so.
    data_dir: the folder that CIFAR is read from or downloaded to.
    image_column, label_column: the columns of a table; None: they have usual names.
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
        return Path(data).is_file() if is_table(data) else bool(data) and Path(data).is_dir()

    def or_recorded(self, recorded: "Origin") -> "Origin":
        """This data set; if it has no name, the one that a file records, with the columns that are given."""
        if self.data:
            return self
        return recorded._replace(
            data_dir=self.data_dir,
            image_column=self.image_column or recorded.image_column,
            label_column=self.label_column or recorded.label_column,
        )


RECORDED = Origin()  # for a parameter: the data that the file records


def is_table(data: str) -> bool:
    """Whether `data` is the name of a table of images, and not of a folder."""
    return data.lower().endswith(".csv") and not Path(data).is_dir()
