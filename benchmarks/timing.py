"""Helpers of the benchmarks: interleaved rounds, ratios, tables, and RESULTS.md, which holds the results."""

import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cnsn_cli.evaluation.latency import interleave as interleave

RESULTS = Path(__file__).with_name("RESULTS.md")
Times = dict[str, list[float]]
Step = Callable[[], object]


def ratio(times: Times, name: str, reference: str) -> float:
    """The median time of `reference` divided by that of `name`: above 1, `name` is faster."""
    return statistics.median(times[reference]) / statistics.median(times[name])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """The processor, its cores, the threads or GPU that torch uses, and the versions of torch and Python."""
    import torch

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    )
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores; {device}; {versions}"


def report(section: str, text: str, write: bool) -> None:
    """Print the results; with `write`, also replace the section of this name in RESULTS.md."""
    words = [Path(word).name if Path(word).exists() else word for word in sys.argv]  # without local folders
    command = " ".join(words)
    body = f"## {section}\n\n`python benchmarks/{command}`, on {machine()}, commit {_commit()}\n\n{text}\n"
    print(body)
    if not write:
        return
    old = RESULTS.read_text() if RESULTS.exists() else "# What was measured\n"
    parts = re.split(r"(?m)^(?=## )", old)
    kept = [part.rstrip() for part in parts if not part.startswith(f"## {section}\n")]
    RESULTS.write_text("\n\n".join([*kept, body.rstrip()]) + "\n")


def _commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()
