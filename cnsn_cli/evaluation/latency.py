"""The latency of models on this machine.

Python users and `cnsn bench` time files with it; `deploy` times models that are open already. The models
take turns, so that a slow moment of the machine slows all of them alike. It does not know which library
computes a model.
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from cnsn_cli.device import choose_device
from cnsn_cli.errors import ArgumentError, CheckpointError
from cnsn_cli.files.model_file import Classifier, is_exported, open_file
from cnsn_cli.files.paths import Paths, listed
from cnsn_cli.stages import stage

ROUNDS = 50
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Speed:
    """The time that a model takes for a batch, in seconds: `p50` is the median, `p95` the 95th percentile.

    `batch` is the number of images in the batch, `threads` the number of threads, `runtime` the library that
    computed. `drops`, `width`, `macs` and `accuracy` are read from the metadata of the file.
    """

    file: Path
    name: str
    drops: int
    width: float
    runtime: str
    batch: int
    threads: int
    p50: float
    p95: float
    macs: int
    accuracy: float | None

    @property
    def images_per_second(self) -> float:
        """Images that the model takes a second at its median speed."""
        return self.batch / self.p50


def bench(
    files: Paths,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    rounds: int = ROUNDS,
    device: str = "cpu",
) -> list[Speed]:
    """Time every model in some files on random images, for each batch size and each number of threads.

    Arguments:
        files: One or several: whole networks, detached models, exported ONNX files.
        batch_sizes: Numbers of images in a batch.
        threads: Numbers of threads.
        rounds: How often each model is timed. The models take turns.
        device: `auto` (the fastest one), `cpu`, `cuda` or `mps`. PyTorch runs eagerly there.

    Returns a Speed for each batch size, number of threads and model, in this order. Raises CheckpointError
    for a file, also for an exported one on another device than the CPU, DeviceError for `device`, ExtraError
    for an ONNX file if ONNX Runtime is not installed, ArgumentError for a number below 1.
    """
    paths, chosen = listed(files, "files"), choose_device(device)
    _check_counts(batch_sizes=batch_sizes, threads=threads, rounds=(rounds,))
    for file in paths:
        if is_exported(file) and chosen.type != "cpu":
            raise CheckpointError(f"{file} is exported and runs on the CPU here: give --device cpu")
    return [
        speed
        for batch in batch_sizes
        for count in threads
        for speed in _bench_together(paths, batch, count, rounds, chosen)
    ]


def _check_counts(**counts: Sequence[int]) -> None:
    for name, numbers in counts.items():
        if not numbers or not all(isinstance(number, int) and number >= 1 for number in numbers):
            given = ", ".join(map(repr, numbers)) or "empty"
            raise ArgumentError(f"{name} is {given}: give whole numbers of at least 1")


def _bench_together(
    files: Sequence[Path], batch: int, threads: int, rounds: int, device: torch.device
) -> list[Speed]:
    # Files are opened again each time: opening sets the threads of ONNX Runtime and PyTorch's weight layout.
    place = None if batch == 1 and device.type == "cpu" else device
    opened = [open_file(file, place, threads) for file in files]
    models = [model for file in opened for model in file.models]
    records = [(file.path, record) for file in opened for record in file.metadata.models]
    times = time_models(models, batch, threads, rounds)
    return [
        Speed(
            path,
            record.name,
            *record.exit,
            model.runtime,
            batch,
            threads,
            statistics.median(seconds),
            sorted(seconds)[math.ceil(0.95 * rounds) - 1],
            record.macs,
            record.accuracy,
        )
        for (path, record), model, seconds in zip(records, models, times, strict=True)
    ]


def time_models(
    models: Sequence[Classifier], batch: int = 1, threads: int = 1, rounds: int = ROUNDS
) -> list[list[float]]:
    """For each model, the seconds that it takes for a batch of random images in each of `rounds` rounds.

    The time includes preprocessing only if it is part of the model.
    """
    variants = {number: _forward(model, batch) for number, model in enumerate(models)}
    what = f"timing models in turns: batches of {batch}, threads: {threads}, rounds: {rounds}"
    with stage(what), _torch_threads(threads), torch.inference_mode():
        times = interleave(variants, rounds)
    return list(times.values())


def latencies(models: Sequence[Classifier]) -> dict[str, float]:
    """Name of a model -> its median seconds for one image on one thread."""
    times = time_models(models)
    return {model.name: statistics.median(seconds) for model, seconds in zip(models, times, strict=True)}


def _forward(model: Classifier, batch: int) -> Callable[[], object]:
    inputs = model.inputs(torch.randint(256, (batch, *model.task.image_shape), dtype=torch.uint8))
    return lambda: model(inputs).cpu()  # another device computes on while Python goes on


def interleave(variants: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, list[float]]:
    """Name -> seconds in each round. Rounds are A B C, A B C, ...; one more warms up and is not counted."""
    times: dict[Name, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if number:
                times[name].append(seconds)
    return times


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
