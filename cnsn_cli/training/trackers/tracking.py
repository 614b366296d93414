"""The trackers of a run: they are told all that happens, and none of them can end the run.

A tracker is a function that takes a TrackedRun and returns a context manager, which yields a function to call
with every event of the run. The context ends when the run has ended: without an exception if all files of the
run folder are complete, plot.png among them. `run` opens trackers here before the first step. This module
does not know what a tracker does with an event.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cnsn_cli import distributed
from cnsn_cli.errors import one_line
from cnsn_cli.stages import stage
from cnsn_cli.training.arguments import ignore
from cnsn_cli.training.metrics import Step

if TYPE_CHECKING:
    from cnsn_cli.training.run import Event, Watch


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows of a run before its first step.

    `folder` is the run folder. `id` is the run's own: a resumed run keeps it, and a run that replaces another
    one in the same folder has a new one. `settings` are the arguments of `train` and the hyper-parameters by
    name. `epochs_done` is 0 unless the run is resumed; epochs that come after them are told (again).
    """

    folder: Path
    id: str
    settings: Mapping[str, Any]
    epochs_done: int


Tracker = Callable[[TrackedRun], AbstractContextManager[Callable[[Any], None]]]


@dataclass(frozen=True)
class TrackerFailed:
    """Event: the tracker `name` has raised an error. It is closed, and the run goes on without it."""

    name: str
    reason: str


@contextmanager
def tracked(run: TrackedRun, trackers: Mapping[str, Tracker], watch: "Watch") -> Iterator["Watch"]:
    """Yields a `watch` that calls `watch`, and then the trackers, with an event.

    All processes call it, and only the first one has trackers. The others wait for them when a run starts and
    after every epoch, because a server may answer slowly.
    """
    with ExitStack() as stack:
        opened: Sequence[_Opened] = []
        if distributed.is_first():
            opened = [stack.enter_context(_Opened(name, trackers[name], run, watch)) for name in trackers]

        def tell(event: "Event") -> None:
            watch(event)
            for tracker in opened:
                tracker.tell(event)
            if trackers and not isinstance(event, Step):
                distributed.wait_for_all()

        yield tell


class _Opened:
    """A tracker while a run lasts. Its first error closes it; then it is told nothing more."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, watch: "Watch") -> None:
        self.name, self.tracker, self.run, self.watch = name, tracker, run, watch
        self.context = ExitStack()
        self.log: Callable[[Any], None] = ignore

    def __enter__(self) -> "_Opened":
        with stage(f"starting {self.name}"), self._harmless():
            self.log = self.context.enter_context(self.tracker(self.run))
        return self

    def tell(self, event: "Event") -> None:
        with self._harmless():
            self.log(event)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the tracker with the error that ends the run, if there is one; the error goes on."""
        if self.log is ignore:  # it has failed, and is closed
            return
        with stage(f"ending {self.name}"), self._harmless():
            self.context.__exit__(kind, error, trace)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Inside this context, errors close the tracker, and what it prints goes to stderr."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # of any library, or of the user's own code
            self.log = ignore
            with suppress(Exception), redirect_stdout(sys.stderr):
                self.context.__exit__(type(error), error, error.__traceback__)
            self.watch(TrackerFailed(self.name, f"{type(error).__name__}: {one_line(error)}"))
