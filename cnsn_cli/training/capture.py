"""A function of tensors as one CUDA graph: its kernels are started together, without Python in between.

`step` makes one for a training step. At a small batch a GPU works for a tenth of the time that Python takes
to start its kernels. This module does not know what the function computes.

    call 1, 2     ordinary calls, on the stream that is captured later
    call 3        an ordinary call that notes whether it asks the device for a value: a graph cannot
    call 4        captured, then replayed
    call 5, ...   replayed
"""

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
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # nothing has run on the device
            self.why_not = one_line(error)[:200]
            self.function()
            return
        self.graph = graph
        graph.replay()


@contextmanager
def questions() -> Iterator[list[str]]:
    """Yields a list that, after the context, names the lines of code in it that waited for the device."""
    asked: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield asked
    finally:
        torch.cuda.set_sync_debug_mode(before)
    asked += [
        f"{Path(warning.filename).name}, line {warning.lineno}"
        for warning in caught
        if "synchronizing" in str(warning.message)
    ]
