"""The time of a training epoch that a tracker records, and of one that nothing records.

none         an epoch without a tracker
tensorboard  the same epoch; its numbers are written, and flushed to the disk

Two equal networks train in turn, an epoch each, on the digits. A tracker takes the same time for every epoch,
so a short epoch is the hard case; it takes `--images` images. The last column has the time that the events of
an epoch spend in the tracker. The first round is a warm-up.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from timing import interleave, markdown, ratio, report

from cnsn_cli import load_dataset, load_recipe
from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import Dataset
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.arguments import ignore
from cnsn_cli.training.trackers import installed
from cnsn_cli.training.trackers.tracking import TrackedRun, tracked
from cnsn_cli.training.trainer import Epoch, Trainer


def epochs(dataset: Dataset, width: float, folder: Path, names: Sequence[str]) -> Iterator[float]:
    """Train an epoch, and yield the seconds that its events took."""
    network = Cnsn(registry.find(f"vgg16:width={width}").build(dataset.task), (2, 7), dataset.task)
    recipe = load_recipe("paper", {"epochs": 1000})
    trainer = Trainer(network, dataset.train, dataset.test, recipe)
    run = TrackedRun(folder, "benchmark", recipe.model_dump(), 0)
    with tracked(run, installed.find(names), ignore) as tell:
        told = 0.0
        for event in trainer.run():
            start = time.perf_counter()
            tell(event)
            told += time.perf_counter() - start
            if isinstance(event, Epoch):
                yield told
                told = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=640, help="images an epoch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()

    whole = load_dataset("digits")
    dataset = Dataset(whole.train.take(torch.arange(given.images)), whole.test, whole.task)
    told: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            name: epochs(dataset, given.width, Path(folder), names)
            for name, names in {"none": (), "tensorboard": ("tensorboard",)}.items()
        }
        turns = {name: lambda name=name, way=way: told[name].append(next(way)) for name, way in ways.items()}
        times = interleave(turns, given.rounds)
        for way in ways.values():
            way.close()
    rows = [
        [
            name,
            f"{statistics.median(seconds):.3f}",
            f"{min(seconds):.3f}",
            f"{1 / ratio(times, name, 'none'):.3f}",
            f"{1e3 * statistics.median(told[name]):.1f}",
        ]
        for name, seconds in times.items()
    ]
    text = f"VGG-16 at width {given.width}, exits 2,7, batch 32, {len(dataset.train):,} images an epoch"
    table = markdown(["tracker", "median s", "minimum s", "x none (median)", "of it told, ms"], rows)
    report("trackers", f"{text}, {given.rounds} rounds\n\n{table}", given.write)


if __name__ == "__main__":
    main()
