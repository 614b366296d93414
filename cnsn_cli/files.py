"""Files appear whole or not at all, and never by accident on top of others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes its place when all went well.

    Raises OutputError where the system refuses; what stood at `path` is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; libraries that write files may choose another
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
