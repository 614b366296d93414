"""What does a narrow sub-model cost in a training step, and how long does it take to detach one?

    python benchmarks/widths.py --write

A step of a network with exits 2,7,@0.5 does the work of a step with 2,7 and of a step of the narrow network
alone. `detach` cuts blocks out of a file; `start-up` is the same call for a tiny file, and `copy` copies as
many bytes, with fsync.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from startup import copy, peak_of_detach
from timing import interleave, markdown, report

from cnsn_cli.backbones.registry import find
from cnsn_cli.deploy.detach import detach
from cnsn_cli.files.checkpoint import save
from cnsn_cli.network.memory_format import place
from cnsn_cli.task import Task
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.building import build_network
from cnsn_cli.training.description import describe
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.step import TrainingStep

CPU, TASK, IMAGES = torch.device("cpu"), Task.plain(), 1000
JOINT, SHORT, WIDTH = (2, 7, "@0.5"), (2, 7), 0.5
CASES = ((0.25, 64, "fp32"), (0.25, 64, "bf16"), (1.0, 32, "fp32"), (1.0, 32, "bf16"))


def new_step(arch: str, exits: tuple[int | str, ...], batch: int, precision: str) -> TrainingStep:
    recipe = load_recipe("best", {"batch_size": batch})
    network = place(build_network(find(arch), exits, TASK, recipe), CPU).train()
    step = TrainingStep(network, torch.randint(10, (IMAGES,)), recipe, precision)
    step.begin(plan_epoch(IMAGES, recipe, 1, CPU))
    pixels = torch.randint(256, (batch, *TASK.image_shape), dtype=torch.uint8)
    step.set(torch.arange(batch), pixels, 0.01, [1.0] * len(exits), 0)
    return step


def steps(width: float, batch: int, precision: str, rounds: int) -> list[str]:
    """A row of the table: the median ms of each step, and the ratios of medians and of minima."""
    wide, narrow = f"vgg16:width={width}", f"vgg16:width={width * WIDTH}"
    variants = {
        "joint": new_step(wide, JOINT, batch, precision),
        "short": new_step(wide, SHORT, batch, precision),
        "narrow": new_step(narrow, (), batch, precision),
    }
    times = interleave(variants, rounds)
    medians = [f"{statistics.median(times[name]) * 1e3:.1f}" for name in variants]
    ratios = [
        of(times["joint"]) / (of(times["short"]) + of(times["narrow"])) for of in (statistics.median, min)
    ]
    return [f"{width:g}", f"{batch}", precision, *medians, ", ".join(f"{ratio:.3f}" for ratio in ratios)]


def detaching(folder: Path, rounds: int) -> str:
    whole, tiny = network_file(folder, "vgg16"), network_file(folder, "vgg16:width=0.02")
    kept, small = folder / "kept.safetensors", folder / "small.safetensors"
    detach(whole, "@0.5", kept)
    variants = {
        "start-up": lambda: detach(tiny, "@0.5", small, force=True),
        "detach": lambda: detach(whole, "@0.5", small, force=True),
        "copy": lambda: copy(kept, folder / "copy"),
    }
    times = interleave(variants, rounds)
    rows = [[n, f"{statistics.median(s) * 1e3:.1f}", f"{min(s) * 1e3:.1f}"] for n, s in times.items()]
    found = [
        (of(times["detach"]) - of(times["start-up"])) / of(times["copy"]) for of in (statistics.median, min)
    ]
    words = ["cnsn", "detach", str(whole), "--submodel", "@0.5", "-o", str(small), "--force"]
    sizes = [path.stat().st_size / 2**20 for path in (kept, whole)]
    table = markdown(["call", "median ms", "minimum ms"], rows)
    return (
        f"{table}\n\nBeside its start-up, detaching takes {found[0]:.2f} x the copy (medians), "
        f"{found[1]:.2f} x (minima). It keeps {sizes[0]:.0f} of {sizes[1]:.0f} MiB. "
        f"The command has at most {peak_of_detach(words):.0f} MiB in memory."
    )


def network_file(folder: Path, name: str) -> Path:
    arch, path = find(name), folder / f"{len(name)}.safetensors"
    network = build_network(arch, JOINT, TASK, load_recipe("paper"))
    save(path, network, describe(network, arch, "cifar10", load_recipe("paper")))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    columns = [
        "width",
        "batch",
        "precision",
        "2,7,@0.5, ms",
        "2,7, ms",
        "narrow, ms",
        "ratio (medians, minima)",
    ]
    table = markdown(columns, [steps(*case, given.rounds) for case in CASES])
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        text = f"{given.rounds} rounds\n\n{table}\n\n{detaching(Path(folder), 3 * given.rounds)}"
        report("widths", text, given.write)


if __name__ == "__main__":
    main()
