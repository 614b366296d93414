"""A file system that fails: it is between writer.py and the system, and makes one of all calls fail."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnsn_cli.files import writer

CALLS = ("open", "fsync", "close", "replace", "link", "unlink")


class FileLayer:
    """Counts calls to the system, and makes the call with number `at` end with `fault`.

    If `fault` is an errno, the call raises OSError. `before` kills this process instead of the call, `after`
    kills it when the call is done; a write is then only half done.
    """

    def __init__(self, at: int | None = None, fault: int | str = 0) -> None:
        self.at, self.fault, self.count = at, fault, 0

    def install(self) -> "FileLayer":
        """Put this layer into the current process, until it ends."""
        writer.os = self  # type: ignore[assignment]
        writer.open = self._open_file  # type: ignore[attr-defined]
        return self

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        return (lambda *arguments: self.call(function, *arguments)) if name in CALLS else function

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        number, self.count = self.count, self.count + 1
        if number != self.at:
            return function(*arguments)
        if isinstance(self.fault, int):
            raise OSError(self.fault, os.strerror(self.fault))
        try:
            if self.fault == "after":
                function(*_half(arguments))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    def _open_file(self, path: Path, mode: str) -> io.BufferedWriter:
        return io.BufferedWriter(_File(self, path, mode), 4096)


class _File(io.FileIO):
    def __init__(self, layer: FileLayer, path: Path, mode: str) -> None:
        self.layer = layer
        layer.call(super().__init__, path, mode)

    def write(self, data: Any) -> int:
        written: int = self.layer.call(super().write, bytes(data))
        return written

    def close(self) -> None:
        if not self.closed:
            try:
                self.layer.call(super().close)
            finally:
                super().close()


def _half(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a[: len(a) // 2] if isinstance(a, bytes) else a for a in arguments)
