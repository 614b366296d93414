"""The images of a split: in memory if they fit, else read from files when they are needed.

datasets.py makes splits; training, evaluation and recalibration take batches from them. This module knows no
names of classes and no networks.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from cnsn_cli.data.views import Reader
from cnsn_cli.errors import DataError, ProcessError
from cnsn_cli.stages import counted, stage

MOST_WORKERS = 8
# A worker that is not forked imports torch in every epoch: elsewhere, and by default from Python 3.14 on.
START = "fork" if sys.platform == "linux" else None
Read = Callable[[int], Tensor]
Make = Callable[[Reader, int], Tensor]  # reads a picture by its number, and makes its pixels

before_workers: list[Callable[[], None]] = []  # what has to be done before worker processes are forked


class Split(Protocol):
    """Images uint8 (C, H, W), all of one size."""

    @property
    def labels(self) -> Tensor:
        """Class numbers int64 (N,)."""

    def __len__(self) -> int: ...

    def batches(self, indices: list[Tensor]) -> Iterator[Tensor]:
        """Yield pixels uint8 (n, C, H, W) for each batch of sample indices (n,)."""

    def in_order(self, size: int) -> Iterator[Tensor]:
        """Yield the pixels of all samples, in batches of `size`; the last batch may be smaller."""

    def take(self, indices: Tensor) -> "Split":
        """Return a split of the samples `indices`, in this order."""

    def to(self, device: torch.device) -> "Split":
        """Return the same split, with the tensors that it holds in memory on `device`."""


@dataclass(frozen=True)
class MemorySplit:
    """A split that holds all pixels uint8 (N, C, H, W) in memory, of the CPU or of the GPU."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, indices: list[Tensor]) -> Iterator[Tensor]:
        return (self.pixels[batch] for batch in indices)

    def in_order(self, size: int) -> Iterator[Tensor]:
        return iter(torch.split(self.pixels, size))  # views: nothing is copied

    def take(self, indices: Tensor) -> "MemorySplit":
        return MemorySplit(self.pixels[indices], self.labels[indices])

    def to(self, device: torch.device) -> "MemorySplit":
        return MemorySplit(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class FileSplit:
    """A split whose images worker processes read when needed: `make(read, i)`, for i in `samples` (N,)."""

    read: Reader
    make: Make
    samples: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, indices: list[Tensor]) -> Iterator[Tensor]:
        for get_ready in before_workers:
            get_ready()
        workers = min(_cores(), MOST_WORKERS)
        loader = DataLoader(
            _Files(partial(self.make, self.read)),
            batch_sampler=[self.samples[batch.cpu()].tolist() for batch in indices],
            num_workers=workers,
            multiprocessing_context=START if workers else None,
            collate_fn=_stacked,
            generator=torch.Generator(),  # else it draws from the generator that dropout uses
            pin_memory=self.labels.device.type == "cuda",
            worker_init_fn=_be_quiet,
        )
        for batch in _from_workers(loader):
            if isinstance(batch, DataError):
                raise batch
            yield batch.to(self.labels.device, non_blocking=True)

    def in_order(self, size: int) -> Iterator[Tensor]:
        return self.batches(list(torch.split(torch.arange(len(self)), size)))

    def take(self, indices: Tensor) -> "FileSplit":
        return replace(self, samples=self.samples[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> "FileSplit":
        return replace(self, labels=self.labels.to(device))

    def made_by(self, make: Make) -> "FileSplit":
        """Return a split of the same pictures, whose pixels `make` makes."""
        return replace(self, make=make)


def _from_workers(loader: "DataLoader[Tensor | DataError]") -> Iterator[Tensor | DataError]:
    """The batches of `loader`. Raises ProcessError if a worker process dies or cannot hand over its batch."""
    before = signal.getsignal(signal.SIGCHLD)
    batches: Iterator[Tensor | DataError] = iter(())
    try:
        batches = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread is; without it, only the next batch raises.
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        if not loader.num_workers:
            raise
        raise ProcessError(_cause_of_death(batches, error)) from error


def _cause_of_death(batches: Iterator[Tensor | DataError], error: Exception) -> str:
    codes = {worker.exitcode for worker in getattr(batches, "_workers", ())}
    text = str(error)
    if -signal.SIGBUS in codes or any(word in text for word in ("Bus error", "shared memory", "No space")):
        return (
            "a process that reads images has ended, most likely because /dev/shm is full: enlarge it, for "
            "example with docker run --shm-size 8g, or use smaller batches"
        )
    killed = " was killed" if -signal.SIGKILL in codes else " has ended"
    return (
        f"a process that reads images{killed}, most likely because memory is full: close other programs, or "
        "use smaller batches or images"
    )


class _Files(TorchDataset[Tensor | DataError]):
    """Images by number. A DataError is returned, not raised: a worker would wrap it into its traceback."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, number: int) -> Tensor | DataError:
        try:
            return self.read(number)
        except DataError as error:
            return error


def _be_quiet(worker: int) -> None:
    """Ignore the warnings of decoders in a worker process: they name no file."""
    warnings.simplefilter("ignore")


def _stacked(images: list[Tensor | DataError]) -> Tensor | DataError:
    for image in images:
        if isinstance(image, DataError):
            return image
    return default_collate(images)  # type: ignore[no-any-return]  # a worker stacks into shared memory


def decoders() -> ThreadPoolExecutor:
    """One thread per core to read pictures; each holds one whole picture. Decoding releases Python's lock."""
    return ThreadPoolExecutor(_cores())


def _cores() -> int:
    """How many cores this process may use; all cores if the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_memory(read: Read, labels: list[int]) -> MemorySplit:
    """Read all images now, into memory."""
    first = read(0)
    pixels = torch.empty(len(labels), *first.shape, dtype=torch.uint8)

    def fill(number: int) -> None:
        pixels[number] = read(number)

    with stage(f"reading {counted(len(labels), 'image')}"), decoders() as pool:
        for _ in pool.map(fill, range(len(labels))):
            pass
    return MemorySplit(pixels, torch.tensor(labels))


def from_files(read: Reader, make: Make, labels: list[int]) -> FileSplit:
    """Make a split without reading any image yet."""
    return FileSplit(read, make, torch.arange(len(labels)), torch.tensor(labels))
