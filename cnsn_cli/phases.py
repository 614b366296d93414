"""Where the time of a run goes: every second counts for one phase, the innermost one that is running.

    training                 |######|      |####|
    evaluating                      |##|
    waiting for the disk               |###|

`training` marks its work with `phase`, and `training.run` collects the seconds. Without a collector, nothing
happens. This module does not know what is done.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeVar, get_args

Phase = Literal["reading", "building", "compiling", "training", "evaluating", "waiting for the disk"]
OTHER = "other"
Item = TypeVar("Item")


class Phases:
    """The seconds of each phase so far, and those of no phase, such as imports and drawing."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = dict.fromkeys([*get_args(Phase), OTHER], 0.0)
        self._running: list[Phase] = []
        self._since = time.perf_counter()
        self._taken = dict(self._seconds)

    def totals(self) -> dict[str, float]:
        self._count()
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """The seconds since the last call, rounded to milliseconds."""
        before, self._taken = self._taken, self.totals()
        return {phase: round(self._taken[phase] - before[phase], 3) for phase in before}

    @contextmanager
    def running(self, phase: Phase) -> Iterator[None]:
        self._count()
        self._running.append(phase)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._running[-1] if self._running else OTHER] += now - self._since
        self._since = now


_phases: ContextVar[Phases | None] = ContextVar("phases", default=None)


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """The seconds in this context count for the phase `name`, except those of a phase inside it."""
    phases = _phases.get()
    if phases is None:
        yield
        return
    with phases.running(name):
        yield


def each(name: Phase, items: Iterator[Item]) -> Iterator[Item]:
    """Yield `items`; the seconds that it takes to make them count for the phase `name`."""
    end = object()
    while True:
        with phase(name):
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]


def totals() -> dict[str, float]:
    """The seconds of each phase so far; empty without a collector."""
    phases = _phases.get()
    return phases.totals() if phases else {}


def taken() -> dict[str, float]:
    """The seconds of each phase since the last call; empty without a collector."""
    phases = _phases.get()
    return phases.take() if phases else {}


@contextmanager
def collected() -> Iterator[Phases]:
    """Collects the seconds of the phases in this context."""
    phases = Phases()
    before = _phases.set(phases)
    try:
        yield phases
    finally:
        _phases.reset(before)
