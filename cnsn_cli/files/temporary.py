"""Temporary files and folders disappear, also when SIGTERM ends the process.

`files.writer` and `deploy` mark what they create. While something is marked, SIGTERM removes it and then ends
the process, as its default action does; no exception is raised into the code that happens to run. Somebody
who listens to SIGTERM, such as a training run, keeps the signal. A training run also says that its thread may
mark files. This module does not know what is written.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_marked: set[Path] = set()
_elsewhere = 0  # how many contexts say that other threads may mark paths


def mark(path: Path) -> None:
    """From now on SIGTERM removes `path`, a file or a folder, before it ends the process."""
    _marked.add(path)
    guard()


def unmark(path: Path) -> None:
    _marked.discard(path)
    guard()


@contextmanager
def marked(path: Path) -> Iterator[None]:
    """Inside this context, `path` is marked."""
    mark(path)
    try:
        yield
    finally:
        unmark(path)


@contextmanager
def marked_elsewhere() -> Iterator[None]:
    """Inside this context, another thread may mark paths at any time.

    Only the main thread can set the handler of a signal, so it sets the handler once for the whole context.
    """
    global _elsewhere
    _elsewhere += 1
    guard()
    try:
        yield
    finally:
        _elsewhere -= 1
        guard()


def guard() -> None:
    """Let SIGTERM remove what is marked, unless somebody listens to SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        return
    before, wanted = signal.getsignal(signal.SIGTERM), _marked or _elsewhere
    if wanted and before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
    elif not wanted and before is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    for path in tuple(_marked):
        with suppress(OSError):
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
