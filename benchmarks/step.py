"""The time of one training step of VGG-16 with exits 2,7: cnsn against three ways in plain PyTorch.

a  the paper's literal way: one forward pass per model through the same modules, losses summed, one backward
b  one backward pass per model, as slimmable networks do it
c  the three networks trained separately
d  the bare step of cnsn: forward pass, losses, backward pass, SGD, on images that are ready
e  the product: `Trainer.run`, with the reading of pixels, augmentation, losses and accuracies

On CUDA e is captured, and also captured and compiled. Rows in bf16 are there where the device has bf16.
`convs` runs only the convolutions of d in fp32, forward and backward, with the same shapes: the lower bound.

Training with cnsn keeps the memory that it frees (`cnsn_cli/memory.py`), and so do d and convs here. `a kept`
tells what this alone would give the literal way. On the CPU every row therefore has a process of its own;
at batch 128 all of them take 13 GB together.

A second table compares e with d for two networks of quarter width: what the loop around a step costs.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from literal import apart, backward_each, literal, literal_bf16
from own_process import OwnProcess
from timing import Step, interleave, markdown, ratio, report
from torch import Tensor, nn

from cnsn_cli.backbones import registry
from cnsn_cli.choices import Precision
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.device import emulates_bf16
from cnsn_cli.memory import keep_freed_memory
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.optimizer import Optimizer
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.rehearsal import rehearse
from cnsn_cli.training.step import forward_pass
from cnsn_cli.training.trainer import Trainer

EXITS = (2, 7)
NAMES = {
    "a": "N+1 forward passes, one backward",
    "a kept": "the same, freed memory kept",
    "a bf16": "the same in bf16",
    "b": "one backward per model",
    "c": "three networks apart",
    "d": "bare step of cnsn",
    "d bf16": "the same in bf16",
    "e": "cnsn train",
    "e bf16": "the same in bf16",
    "e compiled": "the same, captured and compiled, in bf16",
    "convs": "bare convolutions of cnsn",
}
LOOPS = {"vgg16:width=0.25": EXITS, "resnet110:width=0.25": (37, 73)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES = 20_000  # of the product: enough steps that no epoch ends while it is timed


def placed(arch: str, device: torch.device, exits: tuple[int, ...] = EXITS) -> Cnsn:
    task = Task.plain()
    return place(Cnsn(registry.find(arch).build(task), exits, task), device)


def bare(arch: str, images: Tensor, labels: Tensor, precision: Precision = "fp32", exits=EXITS) -> Step:
    return bare_step(placed(arch, images.device, exits).train(), images, labels, precision)


def bare_step(network: Cnsn, images: Tensor, labels: Tensor, precision: Precision) -> Step:
    keep_freed_memory()
    optimizer = Optimizer(network, load_recipe("paper", {"lr": 0.001}))

    def step() -> None:
        optimizer.zero_grad()
        total, _, _ = forward_pass(network, images, labels, precision=precision)
        total.backward()
        optimizer.step()

    return step


def product(
    arch: str,
    images: Tensor,
    labels: Tensor,
    precision: Precision = "fp32",
    compiled: bool = False,
    exits=EXITS,
) -> Step:
    """A step of `Trainer.run`, loop included, on random pixels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = MemorySplit(pixels, torch.randint(10, (IMAGES,), generator=generator))
    recipe = load_recipe("paper", {"lr": 0.001, "batch_size": len(images), "epochs": 1000})
    network = placed(arch, images.device, exits)
    trainer = Trainer(
        network, split, split.take(torch.arange(8)), recipe, precision, compiled, images.is_cuda
    )
    if images.is_cuda:
        rehearse(trainer)
    run = trainer.run()
    return lambda: next(run)


def bare_convs(width: float, images: Tensor, labels: Tensor) -> Step:
    """A step that runs each conv of cnsn's network on features of its shape; images need no gradient."""
    keep_freed_memory()
    network = placed(vgg(width), images.device)
    seen: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def remember(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features = inputs[0].detach().clone().requires_grad_(inputs[0].shape[1] != 3)
        seen.append((conv, features, torch.ones_like(output)))

    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(remember) for conv in convs]
    network.train()(images)
    for hook in hooks:
        hook.remove()

    def step() -> None:
        for conv, features, gradient in seen:
            conv.weight.grad = conv.bias.grad = features.grad = None
            conv(features).backward(gradient)

    return step


def vgg(width: float) -> str:
    return f"vgg16:width={width}"


def literal_kept(width: float, images: Tensor, labels: Tensor) -> Step:
    keep_freed_memory()
    return literal(width, images, labels)


BUILDERS = {
    "a": literal,
    "a kept": literal_kept,
    "a bf16": literal_bf16,
    "b": backward_each,
    "c": apart,
    "d": lambda width, *batch: bare(vgg(width), *batch),
    "d bf16": lambda width, *batch: bare(vgg(width), *batch, precision="bf16"),
    "e": lambda width, *batch: product(vgg(width), *batch),
    "e bf16": lambda width, *batch: product(vgg(width), *batch, precision="bf16"),
    "e compiled": lambda width, *batch: product(vgg(width), *batch, precision="bf16", compiled=True),
    "convs": bare_convs,
}


def there(key: str) -> bool:
    """Whether the row `key` makes sense on this device."""
    if "compiled" in key:
        return DEVICE.type == "cuda"
    if "kept" in key:
        return DEVICE.type == "cpu"  # torch always keeps the memory of a GPU
    return "bf16" not in key or not emulates_bf16(DEVICE)


def random_batch(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 32, 32, device=DEVICE), torch.randint(10, (batch,), device=DEVICE)


def peak_memory(step: Step) -> float:
    """The peak memory in MiB of the tensors that one step allocates."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(sizes)) / 2**20


def peak_of(step: Step) -> float:
    return step.ask(peak_memory) if isinstance(step, OwnProcess) else peak_memory(step)


def built(key: str, width: float, batch: int) -> Step:
    return BUILDERS[key](width, *random_batch(batch))


def built_for(arch: str, exits: tuple[int, ...], build: Callable[..., Step], batch: int) -> Step:
    return build(arch, *random_batch(batch), exits=exits)


def timed(make: Callable[[], Step]) -> Step:
    """The step to time. On CUDA a step takes so little time that asking another process would count."""
    if DEVICE.type == "cpu":
        return OwnProcess(make)
    step = make()
    return lambda: (step(), torch.cuda.synchronize())


def measure(width: float, batch: int, rounds: int) -> str:
    steps = {key: timed(partial(built, key, width, batch)) for key in BUILDERS if there(key)}
    times = interleave(steps, rounds)
    rows = []
    for key in steps:
        name = NAMES[key]
        median, best = statistics.median(times[key]), min(times[key])
        speeds = [f"{batch / median:,.1f}", f"{median * 1e3:,.1f}", f"{best * 1e3:,.1f}"]
        ratios = [f"{ratio(times, key, 'a'):.3f}", f"{min(times['a']) / best:.3f}"]
        memory = "" if key == "convs" else f"{peak_of(steps[key]):,.0f}"
        rows.append([key, name, *speeds, *ratios, memory])
    columns = [
        "",
        "variant",
        "images/s",
        "median ms",
        "minimum ms",
        "x a (median)",
        "x a (minimum)",
        "peak MiB",
    ]
    medians, minima = ratio(times, "convs", "d"), min(times["d"]) / min(times["convs"])
    share = f"d takes {medians:.3f} x the time of its bare convolutions (medians; minima {minima:.3f})."
    return f"batch {batch}, {rounds} rounds\n\n{markdown(columns, rows)}\n\n{share}"


def measure_loop(batch: int, rounds: int) -> str:
    """How much longer a step of the product takes than the bare step."""
    rows = []
    for arch, exits in LOOPS.items():
        variants = {"bare": bare, "loop": product}
        steps = {
            name: timed(partial(built_for, arch, exits, build, batch)) for name, build in variants.items()
        }
        times = interleave(steps, rounds)
        medians = [f"{statistics.median(times[key]) * 1e3:.1f}" for key in steps]
        ratios = [f"{1 / ratio(times, 'loop', 'bare'):.3f}", f"{min(times['loop']) / min(times['bare']):.3f}"]
        rows.append([arch, str(exits), *medians, *ratios])
    columns = ["architecture", "exits", "bare step ms", "product ms", "ratio (median)", "ratio (minimum)"]
    return (
        f"The product over the bare step, batch {batch}, fp32, {rounds} rounds\n\n{markdown(columns, rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    batches = [32, 128, 512] if DEVICE.type == "cuda" else [32, 128]
    parser.add_argument("--batch", type=int, nargs="+", default=batches)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    parts = [measure(given.width, batch, given.rounds) for batch in given.batch]
    parts.append(measure_loop(given.batch[0], given.rounds))
    report("step", "\n\n".join(parts), given.write)


if __name__ == "__main__":
    main()
