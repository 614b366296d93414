"""A trace of some training steps: which operators and kernels ran, when, and for how long.

`run` makes one for `--profile`; https://ui.perfetto.dev and chrome://tracing open it. This module does not
know what a step does.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import profile

from cnsn_cli.files.writer import replacing

FIRST = 5  # steps before the trace: the first ones are slower
TRACED = 20  # steps: a trace of a large network has some MB a step


@contextmanager
def traced(path: Path, steps_left: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after every step. Writes the trace to `path` once its steps are done.

    A run of few steps is traced from an earlier step on. Nothing is written if the run fails before.
    """
    done, first = 0, min(FIRST, max(0, steps_left - 3))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write lines of its own to stderr
    profiler = profile()
    if not first:
        profiler.start()

    def after_step() -> None:
        nonlocal done
        done += 1
        if done == first:
            profiler.start()
        if done == min(first + TRACED, steps_left):
            profiler.stop()
            with replacing(path) as file:
                profiler.export_chrome_trace(file.name)

    yield after_step
