"""Image folders: which folders are classes, which files are images, and which files are left out.

datasets.py and `predict` call this module. It reads names only, no file, and knows no task.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cnsn_cli.choices import SplitName
from cnsn_cli.errors import DataError, escaped
from cnsn_cli.task import class_name

SUFFIXES = (
    ".apng", ".bmp", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
OTHER_PICTURES = (  # of these, cnsn only says how many there are
    ".3fr", ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dds", ".dib", ".dng", ".emf", ".eps", ".exr",
    ".fits", ".gif", ".hdr", ".heic", ".heif", ".ico", ".icns", ".j2k", ".jp2", ".jpx", ".jxl", ".jxr",
    ".nef", ".orf", ".pcx", ".pfm", ".psd", ".raf", ".raw", ".rw2", ".sgi", ".svg", ".svgz", ".tga", ".wmf",
    ".xcf", ".xpm",
)  # fmt: skip
SYSTEM_FOLDERS = {  # in small letters: what systems, storage devices and archives make
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@sharesnap", "@tmp",
    "__macosx", "__pycache__", "found.000", "lost+found", "network trash folder", "recycled", "recycler",
    "system volume information", "temporary items",
}  # fmt: skip


class Found(NamedTuple):
    """The paths of images, sorted, and how many other pictures there are by their suffix."""

    paths: list[str]
    left_out: Counter[str]


class Labelled(NamedTuple):
    """The classes of a split, the images of each, and notes on what was left out."""

    class_names: tuple[str, ...]
    samples: list[tuple[str, int]]
    notes: tuple[str, ...]


def find_images(folder: Path) -> Labelled:
    """Return the classes of a split, which are its folders, and path and class number of all their images.

    Folders whose names are one text in Unicode, once composed and once decomposed, are one class. Raises
    DataError if the name of a class is no UTF-8, since no file could record it.
    """
    classes = class_folders(folder)
    samples, left_out = [], Counter[str]()
    for number, places in enumerate(classes.values()):
        for place in places:
            found = images_below(str(place))
            samples += [(path, number) for path in found.paths]
            left_out += found.left_out
    return Labelled(tuple(classes), samples, tuple(_notes(folder, left_out)))


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the names of the classes in a split, sorted, each with its folders. Raises DataError."""
    classes: dict[str, list[Path]] = {}
    for place in sorted(entry for entry in folder.iterdir() if entry.is_dir() and is_own(entry.name)):
        if escaped(place.name) != place.name:
            raise DataError(f"the class folder '{escaped(place.name)}' in {folder} is no UTF-8: rename it")
        classes.setdefault(class_name(place.name), []).append(place)
    return dict(sorted(classes.items()))


def is_own(name: str) -> bool:
    """Whether a file or folder is one of the user: not hidden, and not made by a system."""
    return name[0] != "." and name.lower() not in SYSTEM_FOLDERS


def is_image(name: str) -> bool:
    """Whether cnsn reads files of this name."""
    return name.lower().endswith(SUFFIXES)


def images_below(folder: str) -> Found:
    """Return the images in a folder and its subfolders.

    Hidden files and folders, and folders that systems make, do not count. Each folder counts once, even if
    links form a circle.
    """
    images, left_out, seen = [], Counter[str](), set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if is_own(name)]
        if real not in seen:
            own = [name for name in files if name[0] != "."]
            images += [(place, name) for name in own if is_image(name)]
            left_out += other_pictures(own)
        seen.add(real)
    return Found([os.path.join(place, name) for place, name in sorted(images)], left_out)


def other_pictures(names: list[str]) -> Counter[str]:
    """How many files are pictures that cnsn does not read, by their suffix."""
    suffixes = (os.path.splitext(name)[1].lower() for name in names)
    return Counter(suffix for suffix in suffixes if suffix in OTHER_PICTURES)


def left_out_note(folder: Path, left_out: Counter[str]) -> str:
    """Say what pictures in a folder cnsn does not read."""
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(left_out.items()))
    return f"pictures left out in {folder}: {counts}; cnsn reads {', '.join(SUFFIXES)}"


def _notes(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    if left_out:
        yield left_out_note(folder, left_out)
    loose = [entry for entry in folder.iterdir() if is_own(entry.name) and is_image(entry.name)]
    if count := sum(not entry.is_dir() for entry in loose):
        yield f"images left out in {folder}: {count:,} that are in no class folder"


def split_folder(data: str, split: SplitName) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of a split, and a note if this is `val/` although there is a `test/`.

    Raises DataError if there is none.
    """
    root = Path(data)
    names = ("train",) if split == "train" else ("test", "val")
    found = [root / name for name in names if (root / name).is_dir()]
    if not found:
        missing = " or ".join(f"{name}/" for name in names)
        raise DataError(
            f"{root} has no folder {missing}: expected train/<class>/<image>, and the same in test/ or val/"
        )
    if found[1:] and not _is_labelled(found[0], root) and _is_labelled(found[1], root):
        return found[1], (f"{found[0]} has no images in class folders: {found[1]} has the test images",)
    return found[0], ()


def _is_labelled(folder: Path, root: Path) -> bool:
    """Whether a split has images of a class, and of a class in `train/` if there is one."""
    known = class_folders(root / "train") if (root / "train").is_dir() else None
    return any(
        images_below(str(place)).paths
        for name, places in class_folders(folder).items()
        if known is None or name in known
        for place in places
    )
