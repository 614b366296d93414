"""The one writer: a file appears complete or not at all, and replaces another one only if `force` says so.

Every module that writes results calls it. It does not know what is in the files.
"""

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cnsn_cli.errors import CnsnError, OutputError
from cnsn_cli.files.temporary import mark, unmark

LONGEST_PART = 50  # characters of a name in that of its temporary file; at most 255 bytes in all


def check_output(path: Path, force: bool, source: Path | None = None) -> None:
    """Raises OutputError if `path` cannot be written, is `source`, or exists and `force` is False."""
    target = end_of_links(path)
    if source is not None and target.exists() and target.samefile(source):
        raise OutputError(f"{path} is the checkpoint itself: give another name")
    if not target.parent.is_dir():
        folder = target.parent if path.is_symlink() else path.parent
        raise OutputError(f"no folder {folder}: create it first")
    if target.exists() and not force:
        raise _taken(path)


def end_of_links(path: Path) -> Path:
    """The file that a program changes when it writes to `path`: the target of a link, even of a dangling one.

    Raises OutputError if there is something else than an ordinary file.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    except OSError as error:  # links in a circle, for example
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} is a folder: give the name of a file")
    if not stat.S_ISREG(mode) or not target.exists():  # /dev/stdout leads to pipes, which have no path
        raise OutputError(f"{path} is no ordinary file: give another name")
    return target


@contextmanager
def filling(folder: Path) -> Iterator[list[Path]]:
    """Creates `folder`; yields a list for the files that are written into it. If that fails, new files go.

    Files that replaced others stay, as nothing can bring the others back.
    """
    created = create_folder(folder)
    before, written = set(folder.iterdir()), list[Path]()
    try:
        yield written
    except BaseException:
        for path in written:
            if path not in before:
                path.unlink(missing_ok=True)
        remove_empty(created)
        raise


def create_folder(path: Path) -> list[Path]:
    """Create the folder `path`, or the target of a dangling link; returns new folders, inner ones first."""
    target = Path(os.path.realpath(path))
    new = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(new)
        raise
    return new


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that are empty and still there."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


Check = Callable[[Path], object]


def accept(written: Path) -> None:
    """A check that accepts every file."""


@contextmanager
def replacing(path: Path, force: bool = True, check: Check = accept) -> Iterator[BinaryIO]:
    """Yields a temporary file in the same folder; at the end it is synced to disk and renamed to `path`.

    If the process or the machine stops, `path` has either its old content or all of the new one. A link stays
    a link, and its target is replaced. `check` reads the file before it is renamed. Raises OutputError if the
    system or `check` refuses, and without `force` also if `path` exists at the end, because somebody else was
    faster.
    """
    with _draft(path) as draft:
        with draft.filling(check) as file:
            yield file
        draft.appear(force)


class NewFile(NamedTuple):
    """The new content of the file `path`, which `check` reads before it appears."""

    path: Path
    content: bytes
    check: Check = accept


def replace_together(files: Iterable[NewFile]) -> None:
    """Replace files that belong together: all are complete on the disk before the first gets its name.

    Each of them is replaced as `replacing` does. The names follow each other at once and in this order, so a
    kill hardly ever leaves some of the new files beside some of the old ones.
    """
    with ExitStack() as until_then:
        drafts = []
        for path, content, check in files:
            drafts.append(until_then.enter_context(_draft(path)))
            with drafts[-1].filling(check) as file:
                file.write(content)
        for draft in drafts:
            draft.appear()


class _Draft:
    """The next version of the file `path`, under a temporary name."""

    def __init__(self, path: Path) -> None:
        self.path, self.target = path, end_of_links(path)
        stem = _temporary_stem(self.target)
        self.temporary = self.target.with_name(f"{stem}{os.urandom(4).hex()}.tmp")

    @contextmanager
    def filling(self, check: Check) -> Iterator[BinaryIO]:
        with _naming(self.path):
            with open(self.temporary, "xb") as file:  # the umask sets its permissions
                yield file
                file.flush()
                os.fsync(file.fileno())
            with read_back(self.path, self.temporary):
                check(self.temporary)

    def appear(self, force: bool = True) -> None:
        with _naming(self.path):
            _appear(self.temporary, self.target, force)
            _sync(self.target.parent)


@contextmanager
def _draft(path: Path) -> Iterator[_Draft]:
    """Yields a draft of `path`; afterwards its temporary file is gone."""
    draft = _Draft(path)
    mark(draft.temporary)
    try:
        yield draft
    finally:
        with suppress(OSError):
            os.unlink(draft.temporary)
        unmark(draft.temporary)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns errors of the system into an OutputError that names `path`."""
    try:
        yield
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def read_back(path: Path, temporary: Path) -> Iterator[None]:
    """Turns errors of reading `temporary` into an OutputError that names `path`."""
    try:
        yield
    except CnsnError as error:
        reason = str(error).replace(str(temporary), "it")
        raise OutputError(f"{path} is not written, because cnsn could not read it again: {reason}") from error


def _appear(temporary: Path, target: Path, force: bool) -> None:
    """Give the file `temporary` its name. Without `force`, raises FileExistsError if the name is taken."""
    if force:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, a hard link never replaces
    except FileExistsError:
        raise
    except OSError:
        _appear_without_links(temporary, target)


def _appear_without_links(temporary: Path, target: Path) -> None:
    """On a file system that has no hard links, such as exFAT, an empty file takes the name first."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        os.replace(temporary, target)
    except BaseException:
        os.unlink(target)
        raise


def _taken(path: Path) -> OutputError:
    return OutputError(f"{path} exists: give --force to replace it, or another name")


def write_text(path: Path, text: str, force: bool = True) -> None:
    with replacing(path, force) as file:
        file.write(text.encode())


def remove_leftovers(folder: Path, names: tuple[str, ...]) -> None:
    """Remove the temporary files that killed processes left behind while they wrote the files `names`.

    The caller makes sure that no process is writing these files. Somebody who writes one nevertheless fails.
    """
    for name in names:
        target = Path(os.path.realpath(folder / name))
        for path in target.parent.glob(f"{glob.escape(_temporary_stem(target))}*.tmp"):
            path.unlink(missing_ok=True)


def _temporary_stem(target: Path) -> str:
    return f".{target.name[:LONGEST_PART]}."


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
