"""Ctrl-C and SIGTERM: how a training run learns of them.

`run` asks after each step, saves the state and ends. Before and after training, the signals have their usual
actions: an exception that a handler raises could come in the middle of an import, and be lost there. This
module does not know what is trained.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cnsn_cli.files.temporary import guard

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

    A signal that came too late to be asked for is sent again at the end. Python hands signals to the main
    thread only; in other threads the function returns None.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        guard()  # a second SIGTERM may come while a file is written

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
    if came:
        os.kill(os.getpid(), came[0])
