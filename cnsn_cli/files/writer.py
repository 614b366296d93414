"""The one writer: a file appears complete or not at all, and replaces another one only if asked to.

Every module that writes results calls it. It does not know what is in the files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cnsn_cli.errors import OutputError


def check_output(path: Path, force: bool, source: Path | None = None) -> None:
    """Raises OutputError if `path` cannot be written, is `source`, or exists and `force` is False."""
    if source is not None and path.exists() and path.samefile(source):
        raise OutputError(f"{path} is the checkpoint itself: give another name")
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
    """Yields a temporary file in the same folder; at the end it is synced to disk and renamed to `path`.

    If the process or the machine stops, `path` has either its old content or all of the new one. Raises
    OutputError if the system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:  # the umask sets its permissions
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
    """Remove the temporary files that killed processes left behind while they wrote the files `names`.

    The caller makes sure that no process is writing these files.
    """
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
