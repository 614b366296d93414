"""The folder of a run: only one run may write to it at a time, and its disk must have enough space.

`run` and `recorder` call this module before the first step. It does not know what the files hold.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from cnsn_cli import distributed
from cnsn_cli.errors import OutputError
from cnsn_cli.files.writer import check_output, create_folder, remove_empty, remove_leftovers

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.safetensors"
METRICS, RECIPE, PLOT, TRACE = "metrics.jsonl", "recipe.toml", "plot.png", "trace.json"
TENSORBOARD = "tensorboard"  # a folder of event files
FOUND, FOUND_PICTURE = "search.json", "search.png"  # what a search found
FILES = (BEST, LAST, STATE, METRICS, RECIPE, PLOT, TRACE, FOUND, FOUND_PICTURE)
LOCK = ".lock"
SMALL_FILES = 2**20  # bytes: metrics, recipe and headers

_held: set[int] = set()


@distributed.first_only
def refuse_existing(folder: Path, force: bool) -> None:
    """Raises OutputError if `folder` holds a run and `force` is False, or something that is not a file."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give --out another name")
    if not force and (_event_files(folder) or any((folder / name).exists() for name in FILES)):
        raise OutputError(
            f"{folder} holds a run already: give --force to replace it, or --out another folder"
        )
    for name in FILES if folder.exists() else ():
        check_output(folder / name, force)


def _event_files(folder: Path) -> list[Path]:
    return list((folder / TENSORBOARD).glob("events.out.tfevents.*"))


@distributed.first_only
def discard_events(folder: Path) -> None:
    """Remove what TensorBoard knows of the run that a new run replaces. Raises OutputError."""
    for path in _event_files(folder):
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder`, which is created if it is missing.

    Temporary files that killed runs left in it are removed. The system releases the lock when the process
    ends, however it ends; the empty file `.lock` stays. A new folder is removed if the run fails before it
    writes anything. Raises OutputError if another run has the lock.
    """
    with ExitStack() as until_then:
        _enter(folder, until_then)
        yield


@contextmanager
def tried(folder: Path) -> Iterator[None]:
    """Like `locked`, for a run that writes nothing: afterwards `folder` is as it was before, or missing."""
    with ExitStack() as until_then:
        _enter(folder, until_then, stays=False)
        yield


@distributed.first_only
def _enter(folder: Path, until_then: ExitStack, stays: bool = True) -> None:
    created = create_folder(folder)
    until_then.callback(remove_empty, created)
    is_new = not (folder / LOCK).exists()
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    until_then.callback(_let_go, descriptor)
    _lock(descriptor, folder)
    if is_new and not stays:
        until_then.callback((folder / LOCK).unlink, missing_ok=True)
    if created and stays:
        until_then.push(partial(_remove_unused, folder))
    if stays:
        remove_leftovers(folder, FILES)


def _remove_unused(folder: Path, kind: object, error: object, trace: object) -> None:
    """After an error, remove the lock of a new folder, if there is nothing else in it."""
    if error and os.listdir(folder) == [LOCK]:
        os.unlink(folder / LOCK)


def _let_go(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"another run is using {folder}: wait until it ends, or give --out another folder"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot lock {folder}: {error.strerror}") from error


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# Processes that read images outlive a killed run by seconds, and must not keep its lock.
os.register_at_fork(after_in_child=_close_in_child)


@distributed.first_only
def check_space(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raises OutputError unless the disk has space for files of `sizes` bytes by name, and for a second copy.

    The files are replaced together: all their old and all their new versions are on the disk at once.
    """
    needed = most_bytes(folder, sizes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the files of the run take {needed / 2**20:,.1f} MiB, and {folder} has {free / 2**20:,.1f} MiB "
            "free: make room, or give --out a folder on another disk"
        )


def most_bytes(folder: Path, sizes: Mapping[str, int]) -> int:
    """The bytes that a run adds to a disk at most; the files in `folder` that it replaces go later."""
    there = sum((folder / name).stat().st_size for name in sizes if (folder / name).exists())
    once = sum(sizes.values())
    return once + max(0, once - there) + SMALL_FILES
