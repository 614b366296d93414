"""The evaluation of training against the bare forward passes of the same models, at the same batch size.

bare       every model of VGG-16 with exits 2,7 on normalised images that are ready
bare kept  the same in a process that keeps the memory that it frees, as evaluation does
cnsn       `evaluate`, which training calls after each epoch: pixels in, accuracies and losses out

Every row has a process of its own.
"""

import argparse
import statistics
from functools import partial

import torch
from own_process import OwnProcess
from step import placed, vgg
from timing import Step, interleave, markdown, report

from cnsn_cli.data.pixels import batch_size
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.evaluation.accuracy import evaluate
from cnsn_cli.memory import keep_freed_memory

CPU = torch.device("cpu")


def bare(width: float, images: int, kept: bool) -> Step:
    if kept:
        keep_freed_memory()
    network = placed(vgg(width), CPU)
    models = [model.eval() for model in network.models()]
    batches = torch.randn(images, *network.task.image_shape).split(batch_size(network.task))

    def step() -> None:
        with torch.inference_mode():
            for batch in batches:
                for model in models:
                    model(batch)

    return step


def product(width: float, images: int) -> Step:
    network = placed(vgg(width), CPU)
    pixels = torch.randint(256, (images, *network.task.image_shape), dtype=torch.uint8)
    return partial(evaluate, network, MemorySplit(pixels, torch.randint(10, (images,))))


def rows(width: float, images: int, rounds: int) -> list[list[str]]:
    makers = {
        "bare": partial(bare, width, images, kept=False),
        "bare kept": partial(bare, width, images, kept=True),
        "cnsn": partial(product, width, images),
    }
    times = interleave({name: OwnProcess(make) for name, make in makers.items()}, rounds)
    return [
        [
            f"{width:g}",
            name,
            *(f"{of(seconds) * 1e3:,.0f}" for of in (statistics.median, min)),
            *(f"{of(seconds) / of(times['bare kept']):.3f}" for of in (statistics.median, min)),
        ]
        for name, seconds in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    columns = ["width", "variant", "median ms", "minimum ms", "x bare kept (median)", "(minimum)"]
    found = [row for width in given.widths for row in rows(width, given.images, given.rounds)]
    report(
        "evaluation",
        f"{given.images:,} images, {given.rounds} rounds\n\n{markdown(columns, found)}",
        given.write,
    )


if __name__ == "__main__":
    main()
