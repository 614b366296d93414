"""A captured function does its work once a call. A stand-in for CUDA records and replays on the CPU."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from cnsn_cli.training import capture
from cnsn_cli.training.capture import WARM_UP, Captured


class Graph:
    """A graph replays what was called while it was captured; nothing is done before."""

    def __init__(self, cuda: "Cuda") -> None:
        self.cuda = cuda
        self.recorded: list[Callable[[], None]] = []

    def replay(self) -> None:
        for work in self.recorded:
            work()


class Cuda(SimpleNamespace):
    """What `capture` needs of torch.cuda. `run` is a kernel: it is recorded, or done at once."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(fails=fails, capturing=None, mode="default", current="default stream")
        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.Stream, self.current_stream = lambda: stream, lambda: stream
        self.stream, self.CUDAGraph = (lambda chosen: nullcontext()), lambda: Graph(self)
        self.set_stream = lambda chosen: setattr(self, "current", chosen)
        self.current_device = lambda: 0
        generator = SimpleNamespace(clone_state=lambda: "state", graphsafe_set_state=lambda state: None)
        self.default_generators = [generator]
        self.get_sync_debug_mode = lambda: self.mode
        self.set_sync_debug_mode = lambda mode: setattr(self, "mode", mode)

    @contextmanager
    def graph(self, graph: Graph, stream: object, capture_error_mode: str) -> Iterator[None]:
        self.capturing = graph
        yield
        self.capturing = None

    def run(self, work: Callable[[], None]) -> None:
        if not self.capturing:
            work()
        elif self.fails:
            self.capturing = None
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        else:
            self.capturing.recorded.append(work)


class Counter:
    """A function with one kernel. It counts how often Python calls it, and how often the kernel runs."""

    def __init__(self, cuda: Cuda, asks: bool = False) -> None:
        self.cuda, self.asks, self.called, self.done = cuda, asks, 0, 0

    def __call__(self) -> None:
        self.called += 1
        if self.asks and self.cuda.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        self.cuda.run(self._kernel)

    def _kernel(self) -> None:
        self.done += 1


def counted(monkeypatch, **more: bool) -> tuple[Counter, Captured]:
    cuda = Cuda(more.pop("fails", False))
    monkeypatch.setattr(capture, "torch", SimpleNamespace(cuda=cuda, OutOfMemoryError=torch.OutOfMemoryError))
    function = Counter(cuda, **more)
    return function, Captured(function)


def test_every_call_does_the_work_once_and_python_only_at_first(monkeypatch):
    function, captured = counted(monkeypatch)
    for call in range(1, 10):
        captured()
        assert function.done == call
        assert function.called == min(call, WARM_UP + 1)
    assert (captured.graph is not None, captured.why_not) == (True, "")


def test_a_function_that_asks_the_device_is_called_every_time(monkeypatch):
    function, captured = counted(monkeypatch, asks=True)
    for call in range(1, 10):
        captured()
        assert (function.done, function.called) == (call, call)
    assert captured.graph is None
    assert captured.why_not.startswith("it asks the device for a value in test_capture.py, line ")


def test_a_capture_that_fails_says_why_and_the_work_is_done(monkeypatch):
    function, captured = counted(monkeypatch, fails=True)
    for call in range(1, 10):
        captured()
        assert function.done == call
    assert captured.graph is None
    assert captured.why_not == "operation not permitted when stream is capturing"


def test_other_warnings_are_shown(monkeypatch):
    function, _ = counted(monkeypatch)
    with pytest.warns(DeprecationWarning, match="an old layer"), capture.questions() as asked:
        warnings.warn("an old layer", DeprecationWarning, stacklevel=1)
    assert asked == []
    assert function.cuda.mode == "default"
