"""The images of a split: in memory where they fit, else read from files as training goes along."""

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from cnsn_cli.errors import DataError

MOST_WORKERS = 8
Read = Callable[[int], Tensor]


class Split(Protocol):
    """Images uint8 (C, H, W), all of one size."""

    @property
    def labels(self) -> Tensor:
        """Class numbers int64 (N,)."""

    def __len__(self) -> int: ...

    def batches(self, indices: list[Tensor]) -> Iterator[Tensor]:
        """Pixels uint8 (n, C, H, W) of each batch of sample indices (n,)."""

    def take(self, indices: Tensor) -> "Split":
        """The samples `indices`, in that order."""

    def to(self, device: torch.device) -> "Split":
        """The same split, with what is in memory on `device`."""


@dataclass(frozen=True)
class MemorySplit:
    """All pixels uint8 (N, C, H, W) in memory, or on the GPU."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, indices: list[Tensor]) -> Iterator[Tensor]:
        return (self.pixels[batch] for batch in indices)

    def take(self, indices: Tensor) -> "MemorySplit":
        return MemorySplit(self.pixels[indices], self.labels[indices])

    def to(self, device: torch.device) -> "MemorySplit":
        return MemorySplit(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class FileSplit:
    """Images that worker processes read when they are needed; `samples` (N,) are the numbers to read."""

    read: Read
    samples: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, indices: list[Tensor]) -> Iterator[Tensor]:
        loader = DataLoader(
            _Files(self.read),
            batch_sampler=[self.samples[batch.cpu()].tolist() for batch in indices],
            num_workers=min(_cores(), MOST_WORKERS),
            collate_fn=_stacked,
            generator=torch.Generator(),  # of its own: it would draw from the one that dropout uses
            pin_memory=self.labels.device.type == "cuda",
            worker_init_fn=_be_quiet,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch.to(self.labels.device, non_blocking=True)

    def take(self, indices: Tensor) -> "FileSplit":
        return FileSplit(self.read, self.samples[indices], self.labels[indices])

    def to(self, device: torch.device) -> "FileSplit":
        return FileSplit(self.read, self.samples, self.labels.to(device))


class _Files(TorchDataset[Tensor | DataError]):
    """Errors are returned: raised in a worker, they would come back wrapped into its traceback."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, number: int) -> Tensor | DataError:
        try:
            return self.read(number)
        except DataError as error:
            return error


def _be_quiet(worker: int) -> None:
    """Decoders warn without naming a file."""
    warnings.simplefilter("ignore")


def _stacked(images: list[Tensor | DataError]) -> Tensor | DataError:
    for image in images:
        if isinstance(image, DataError):
            return image
    return torch.stack(images)  # type: ignore[arg-type]


def decoders() -> ThreadPoolExecutor:
    """Threads that read pictures, one a core: each holds a whole one. Decoding releases Python's lock."""
    return ThreadPoolExecutor(_cores())


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_memory(read: Read, labels: list[int]) -> MemorySplit:
    """Read all images now."""
    first = read(0)
    pixels = torch.empty(len(labels), *first.shape, dtype=torch.uint8)

    def fill(number: int) -> None:
        pixels[number] = read(number)

    with decoders() as pool:
        for _ in pool.map(fill, range(len(labels))):
            pass
    return MemorySplit(pixels, torch.tensor(labels))


def from_files(read: Read, labels: list[int]) -> FileSplit:
    """Read nothing yet."""
    return FileSplit(read, torch.arange(len(labels)), torch.tensor(labels))
