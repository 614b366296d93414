"""The stages of a job that may take seconds: what is being done, and how long it took.

Every package wraps such work in `stage`. `main` and `cnsn train` listen, and show the stages to people.
Without a listener, nothing happens. This module prints nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """Some work: `reading 2,000 images`. It took `seconds`; None: it has just begun."""

    what: str
    seconds: float | None = None


def counted(number: int, word: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {word}{'s' * (number != 1)}"


Listener = Callable[[Stage], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Tells the listener that the work in this context begins, and, if it does not fail, that it is done."""
    listener, begun = _listener.get(), Stage(what)
    if listener is None:
        yield
        return
    listener(begun)
    start = time.perf_counter()
    yield
    listener(replace(begun, seconds=time.perf_counter() - start))


@contextmanager
def told(listener: Listener) -> Iterator[None]:
    """In this context, `listener` is called when a stage begins, and again when the stage is done."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)
