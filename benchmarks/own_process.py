"""A step in a process of its own: it gains nothing from memory that another step has freed."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

from timing import Step

Answer = TypeVar("Answer")


class OwnProcess:
    """The step that `make` returns in a new process. A call does one step there, and waits for its end."""

    def __init__(self, make: Callable[[], Step]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would begin with the memory of this process
        self.pipe, other_end = context.Pipe()
        context.Process(target=_serve, args=(make, other_end), daemon=True).start()
        self.pipe.recv()  # the step is made

    def __call__(self) -> None:
        self.ask(_do)

    def ask(self, question: Callable[[Step], Answer]) -> Answer:
        """What `question` returns for the step, in its process."""
        self.pipe.send(question)
        return self.pipe.recv()


def _do(step: Step) -> None:
    step()


def _serve(make: Callable[[], Step], pipe: Connection) -> None:
    step = make()
    pipe.send(None)
    with suppress(EOFError, KeyboardInterrupt):  # the other process has ended
        while True:
            pipe.send(pipe.recv()(step))
