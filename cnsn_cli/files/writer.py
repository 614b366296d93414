"""The one writer: files appear whole or not at all, and never by accident on top of others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cnsn_cli.errors import OutputError


def check_output(path: Path, force: bool) -> None:
    """Raises OutputError where `path` cannot be written, or exists and `force` is not given."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no ordinary file: give another name")
    if not path.parent.is_dir():
        raise OutputError(f"no folder {path.parent}: create it first")
    if path.exists() and not force:
        raise OutputError(f"{path} exists: give --force to replace it, or another name")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a new file beside `path`, which takes its place when all went well and is on the disk.

    Raises OutputError where the system refuses. Whenever the process or the machine stops, `path` holds
    either what stood there before or all of the new content.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:  # with permissions by the umask
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def remove_leftovers(folder: Path, names: tuple[str, ...]) -> None:
    """Remove what writes of the files `names` left behind that were killed. Nobody may be writing them."""
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
