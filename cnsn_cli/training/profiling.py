"""A trace of some training steps: which operators and kernels ran, when, and for how long.

`run` makes one for `--profile`; https://ui.perfetto.dev and chrome://tracing open it. This module does not
know what a step does.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch.profiler import profile

from cnsn_cli.errors import OutputError
from cnsn_cli.files.writer import remove_leftovers, replacing

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
    with ExitStack() as traced_steps:  # a run may end before its trace does
        if not first:
            traced_steps.enter_context(profiler)

        def after_step() -> None:
            nonlocal done
            done += 1
            if done == first:
                traced_steps.enter_context(profiler)
            if done == min(first + TRACED, steps_left):
                traced_steps.close()
                _write(profiler, path)

        yield after_step


def _write(profiler: profile, path: Path) -> None:
    """The profiler writes a file of its own and renames it; if the disk is full, it says nothing."""
    try:
        with replacing(path, check=_is_written) as file:
            profiler.export_chrome_trace(file.name)
    except OutputError:
        remove_leftovers(path.parent, (path.name,))
        raise


def _is_written(written: Path) -> None:
    if not written.stat().st_size:
        raise OutputError("it is empty, most likely because the disk is full")
