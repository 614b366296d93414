"""What people see on stderr while they wait for a stage of a job: a live line with the seconds.

When the stage is done, one line stays, with its time; off a terminal that line is all. `main` shows the
stages of every command; `cnsn train` shows them together with its bars.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cnsn_cli.commands.output import printable
from cnsn_cli.stages import Stage, told

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text


@contextmanager
def shown() -> Iterator[None]:
    """Shows every stage of the work in this context."""
    line = _Line()
    try:
        with told(line):
            yield
    finally:
        line.clear()


def finished(stage: Stage) -> str:
    """The line that stays: `reading 2,000 images: 1.2 s`."""
    return printable(f"{stage.what}: {stage.seconds:,.1f} s")


class Clock:
    """A renderable: the stage that is running, and its seconds so far."""

    def __init__(self) -> None:
        self.what, self.start = "", 0.0

    def begin(self, stage: Stage) -> None:
        self.what, self.start = printable(stage.what), time.monotonic()

    def end(self) -> None:
        self.what = ""

    def __rich__(self) -> "Text":
        from rich.text import Text

        return Text(f"{self.what}  {time.monotonic() - self.start:.0f} s" if self.what else "")


class _Line:
    def __init__(self) -> None:
        self.clock = Clock()
        self.live: Live | None = None

    def __call__(self, stage: Stage) -> None:
        self.clear()
        if stage.seconds is not None:
            print(finished(stage), file=sys.stderr, flush=True)
        elif sys.stderr.isatty():
            self._show(stage)

    def _show(self, stage: Stage) -> None:
        from rich.console import Console
        from rich.live import Live

        self.clock.begin(stage)
        self.live = Live(self.clock, console=Console(stderr=True), transient=True)
        self.live.start()

    def clear(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None
