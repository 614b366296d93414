"""Ctrl-C and SIGTERM, which end a training run after its step, with its state saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Training was stopped by the signal `number`, and can go on from where it was."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def listening() -> Iterator[Callable[[], int | None]]:
    """Yields what tells which signal has come. A second one does what the first would have done before.

    Python hands signals to the main thread only; in others nothing changes.
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
