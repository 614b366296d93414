"""Ctrl-C and SIGTERM: how a training run learns of them.

`run` asks after each step, saves the state and ends. This module does not know what is trained.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Training was stopped by the signal `number` after a step; its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def listening() -> Iterator[Callable[[], int | None]]:
    """Yields a function that returns the signal received so far, or None. After the first signal the old
    handlers are back, so a second one interrupts at once.

    Python hands signals to the main thread only; in other threads the function returns None.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield lambda: came[0] if came else None
    finally:
        restore()
