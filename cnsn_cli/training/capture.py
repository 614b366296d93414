"""A function of tensors as one CUDA graph: its kernels are started together, without Python in between.

`step` makes one for a training step. At a small batch a GPU works for a tenth of the time that Python takes
to start its kernels. This module does not know what the function computes.

    call 1, 2     ordinary calls, on the stream that is captured later
    call 3        an ordinary call that notes whether it asks the device for a value: a graph cannot
    call 4        captured, then replayed
    call 5, ...   replayed
"""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cnsn_cli.errors import one_line

WARM_UP = 3  # calls; the first ones allocate what has to exist before a capture, such as momenta


class Captured:
    """Calls `function`, which must read and change the same tensors in each call.

    Every call does its work once, whether it is an ordinary one or a replayed one. `why_not` is a reason if
    the function cannot be captured; then all calls are ordinary.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.why_not = ""
        self.calls = 0
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed: torch.cuda.CUDAGraph | None = None  # torch asks it after a failure, too

    def __call__(self) -> None:
        self.calls += 1
        if self.graph:
            self.graph.replay()
        elif self.why_not:
            self.function()
        elif self.calls <= WARM_UP:
            self._warm_up()
        else:
            self._capture()

    def _warm_up(self) -> None:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), questions() as asked:
            self.function()
        current.wait_stream(self.stream)
        if self.calls == WARM_UP and asked:  # earlier calls may ask once, for example to choose an algorithm
            self.why_not = f"it asks the device for a value in {asked[0]}"

    def _capture(self) -> None:
        gc.collect()  # a graph that is destroyed during a capture can end it
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.function()
        except RuntimeError as error:  # nothing has run on the device
            _clean_up(stream)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.failed = graph
            self.why_not = one_line(_first(error))[:200]
            self.function()
            return
        self.graph = graph
        graph.replay()


def _clean_up(stream: torch.cuda.Stream) -> None:
    """After a failed capture, torch leaves its stream current, and its random numbers wait for its end."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def _first(error: BaseException) -> BaseException:
    """What failed first: the end of a capture only says that something has."""
    while error.__context__:
        error = error.__context__
    return error


@contextmanager
def questions() -> Iterator[list[str]]:
    """Yields a list that, after the context, names the lines of code in it that waited for the device."""
    asked: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")  # warns that this mode is a prototype
        try:
            yield asked
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            asked.append(f"{Path(warning.filename).name}, line {warning.lineno}")
        elif "prototype" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
