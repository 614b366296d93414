"""Timing things side by side."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def interleave(variants: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, list[float]]:
    """Seconds of each variant in `rounds` rounds A B C, A B C, ..., after one round to warm up."""
    times: dict[Name, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if number:
                times[name].append(seconds)
    return times
