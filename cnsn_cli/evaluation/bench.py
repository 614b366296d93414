"""How fast models answer on the CPU of this machine."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cnsn_cli.evaluation.latency import interleave
from cnsn_cli.files.metadata import ModelRecord
from cnsn_cli.files.model_file import open_file
from cnsn_cli.files.onnx_model import OnnxModel
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Cnsn, Model

ROUNDS = 50
Forward = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """How long a model takes for a batch: the median and the 95th percentile, in seconds.

    `macs` and `accuracy` are what the file says of the model.
    """

    file: Path
    name: str
    runtime: str
    batch: int
    threads: int
    p50: float
    p95: float
    macs: int
    accuracy: float | None

    @property
    def images_per_second(self) -> float:
        return self.batch / self.p50


def bench(
    files: Sequence[Path],
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    rounds: int = ROUNDS,
) -> list[Speed]:
    """Time every model in `files`, each batch size with each number of threads.

    Models take turns, so that what slows the machine down slows all alike. PyTorch runs eagerly. Raises
    CheckpointError, and for ONNX files ExtraError.
    """
    return [
        speed
        for batch in batch_sizes
        for count in threads
        for speed in _bench_together(files, batch, count, rounds)
    ]


def _bench_together(files: Sequence[Path], batch: int, threads: int, rounds: int) -> list[Speed]:
    found = [(file, *found) for file in files for found in _forwards(file, batch, threads)]
    with _torch_threads(threads), torch.inference_mode():
        times = interleave({i: forward for i, (*_, forward) in enumerate(found)}, rounds)
    return [
        Speed(
            file,
            record.name,
            runtime,
            batch,
            threads,
            statistics.median(times[index]),
            sorted(times[index])[math.ceil(0.95 * rounds) - 1],
            record.macs,
            record.accuracy,
        )
        for index, (file, record, runtime, _) in enumerate(found)
    ]


def _forwards(file: Path, batch: int, threads: int) -> Iterator[tuple[ModelRecord, str, Forward]]:
    """Each model of a file with a batch to answer; preprocessing counts where it is part of the file."""
    network, metadata = open_file(file, threads)
    pixels = torch.randint(256, (batch, *metadata.task.image_shape), dtype=torch.uint8)
    if isinstance(network, OnnxModel):
        inputs = network.inputs(pixels)
        yield metadata.models[0], "ONNX Runtime", lambda: network.run(inputs)
        return
    images = pixels / 255
    for record, model in zip(metadata.models, _laid_out(network, batch).models(), strict=True):
        yield record, "PyTorch", lambda model=model: model(images)  # type: ignore[misc]


def _laid_out(network: Cnsn | Model, batch: int) -> Cnsn | Model:
    """In the memory format that is fastest for one image, or for many."""
    return network if batch == 1 else place(network, torch.device("cpu"))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
