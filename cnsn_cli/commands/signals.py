"""Signals while ONNX Runtime computes: its code does not come back to Python, which would handle them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ended_by_signals(*files: Path) -> Iterator[None]:
    """If one of `files` is an exported file, Ctrl-C and SIGTERM end the process at once.

    For commands that leave nothing to tidy up. The file comes from a stranger, and may compute for hours.
    """
    from cnsn_cli.files.model_file import is_exported

    numbers = SIGNALS if any(map(is_exported, files)) else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
