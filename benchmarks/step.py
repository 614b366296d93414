"""The time of one training step of VGG-16 with exits 2,7: cnsn against three ways in plain PyTorch.

a  the paper's literal way: one forward pass per model through the same modules, losses summed, one backward
b  one backward pass per model, as slimmable networks do it
c  the three networks trained separately
d  cnsn with its defaults: on CUDA in bf16 and compiled

`convs` runs only the convolutions of d, forward and backward, with the same shapes: the lower bound.
"""

import argparse
import statistics
from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from timing import interleave, markdown, ratio, report
from torch import Tensor, nn

from cnsn_cli.backbones import registry
from cnsn_cli.device import default_precision
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.optimizer import sgd
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.step import forward_pass

EXITS = (2, 7)
CUTS = {"base": 0, "k=2": 2, "k=7": 7}
NAMES = {
    "a": "N+1 forward passes, one backward",
    "a bf16": "the same in bf16",
    "b": "one backward per model",
    "c": "three networks apart",
    "d": "cnsn",
    "convs": "bare convolutions of cnsn",
}
Step = Callable[[], object]


def plain_vgg16(width: float) -> tuple[nn.ModuleList, nn.Module]:
    """VGG-16 in plain PyTorch: one unit for each conv, and the head."""
    units, channels = nn.ModuleList(), 3
    for out, convs in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for index in range(convs):
            size = int(out * width)
            layers = [nn.Conv2d(channels, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU(inplace=True)]
            units.append(nn.Sequential(*layers, *[nn.MaxPool2d(2)] * (index == convs - 1)))
            channels = size
    return units, nn.Sequential(nn.Flatten(), nn.Linear(channels, 10))


def step_down(out: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, out, size, size), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Plain(nn.Module):
    """The modules of the paper: shared units and head, two step-down convs."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.units, self.head = plain_vgg16(width)
        stems = {"k=2": step_down(int(64 * width), 2), "k=7": step_down(int(256 * width), 8)}
        self.stems = nn.ModuleDict(stems)

    def run(self, name: str, images: Tensor) -> Tensor:
        features = self.stems[name](images) if name in self.stems else images
        for unit in self.units[CUTS[name] :]:
            features = unit(features)
        return self.head(features)


def weighted(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels) * (1 if name == "base" else 0.5)


def literal(width: float, images: Tensor, labels: Tensor) -> Step:
    network = Plain(width).to(images.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=6e-4)

    def step() -> None:
        optimizer.zero_grad()
        sum(weighted(name, network.run(name, images), labels) for name in CUTS).backward()
        optimizer.step()

    return step


def literal_bf16(width: float, images: Tensor, labels: Tensor) -> Step:
    step = literal(width, images, labels)

    def in_bf16() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            step()

    return in_bf16


def backward_each(width: float, images: Tensor, labels: Tensor) -> Step:
    network = Plain(width).to(images.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=6e-4)

    def step() -> None:
        optimizer.zero_grad()
        for name in CUTS:
            weighted(name, network.run(name, images), labels).backward()
        optimizer.step()

    return step


def apart(width: float, images: Tensor, labels: Tensor) -> Step:
    networks = {name: Plain(width).to(images.device) for name in CUTS}
    optimizers = {
        name: torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=6e-4)
        for name, network in networks.items()
    }

    def step() -> None:
        for name, network in networks.items():
            optimizers[name].zero_grad()
            weighted(name, network.run(name, images), labels).backward()
            optimizers[name].step()

    return step


def ours(width: float, images: Tensor, labels: Tensor) -> Step:
    task = Task.plain()
    network = Cnsn(registry.find(f"vgg16:width={width}").build(task), EXITS, task)
    network = place(network, images.device).train()
    optimizer = sgd(network, load_recipe("paper", {"lr": 0.001}))
    forward = torch.compile(network) if images.is_cuda else network
    precision = default_precision(images.device)

    def step() -> None:
        optimizer.zero_grad()
        total, _, _ = forward_pass(forward, images, labels, precision=precision)
        total.backward()
        optimizer.step()

    return step


def bare_convs(width: float, images: Tensor, labels: Tensor) -> Step:
    """A step that runs each conv of cnsn's network on features of its shape; images need no gradient."""
    task = Task.plain()
    network = place(Cnsn(registry.find(f"vgg16:width={width}").build(task), EXITS, task), images.device)
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


BUILDERS = {
    "a": literal,
    "a bf16": literal_bf16,
    "b": backward_each,
    "c": apart,
    "d": ours,
    "convs": bare_convs,
}


def random_batch(batch: int) -> tuple[Tensor, Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)


def peak_memory(step: Step) -> float:
    """The peak memory in MiB of the tensors that one step allocates."""
    if torch.cuda.is_available():
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


def synchronised(step: Step) -> Step:
    if not torch.cuda.is_available():
        return step
    return lambda: (step(), torch.cuda.synchronize())


def measure(width: float, batch: int, rounds: int) -> str:
    steps = {
        key: synchronised(build(width, *random_batch(batch)))
        for key, build in BUILDERS.items()
        if key != "a bf16" or torch.cuda.is_available()
    }
    times = interleave(steps, rounds)
    rows = []
    for key in steps:
        name = NAMES[key]
        median, best = statistics.median(times[key]), min(times[key])
        speeds = [f"{batch / median:,.1f}", f"{median * 1e3:,.1f}", f"{best * 1e3:,.1f}"]
        ratios = [f"{ratio(times, key, 'a'):.3f}", f"{min(times['a']) / best:.3f}"]
        memory = "" if key == "convs" else f"{peak_memory(steps[key]):,.0f}"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    batches = [32, 128, 512] if torch.cuda.is_available() else [32, 128]
    parser.add_argument("--batch", type=int, nargs="+", default=batches)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    parts = [measure(given.width, batch, given.rounds) for batch in given.batch]
    report("step", "\n\n".join(parts), given.write)


if __name__ == "__main__":
    main()
