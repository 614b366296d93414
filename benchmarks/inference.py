"""Latency and throughput of the base-model, k=2 and k=7 of VGG-16, unchanged and with folded BN.

The table shows ratios of times beside ratios of MACs. If both agree, dropping layers saves the time that it
should. `convs` runs only the convolutions of a model, on inputs of the same shapes: no model can be faster,
up to noise. At batch 1 weights are laid out as by `cnsn_cli.load`, at batch 64 as by `cnsn eval`.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import interleave, markdown, report
from torch import Tensor, nn

from cnsn_cli.backbones import registry
from cnsn_cli.device import choose_device
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.network.folding import fold
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

Forward = Callable[[Tensor], object]


def variants(width: float, batch: int) -> tuple[dict[str, Forward], dict[str, int]]:
    task, device = Task.plain(), choose_device()
    network = Cnsn(registry.find(f"vgg16:width={width}").build(task), (2, 7), task)
    network(torch.randn(8, 3, 32, 32))  # changes the initial BN statistics

    def laid_out(model: Cnsn | Model) -> Cnsn | Model:
        if batch > 1:
            return place(model, device).eval()
        return model.to(device).to(memory_format=torch.channels_last).eval()

    models = dict(zip(("base", "k=2", "k=7"), laid_out(network).models(), strict=True))
    macs = {name: cost.macs for name, cost in zip(models, model_costs(network), strict=True)}
    folded = {f"{name}, folded": laid_out(fold(model)) for name, model in models.items()}
    images = torch.randn(batch, 3, 32, 32, device=device)
    convs = {f"{name}, convs": bare_convs(models[name], images) for name in ("base", "k=7")}
    every = {**models, **folded, **convs}
    return every, {name: macs[name.split(",")[0]] for name in every}


def bare_convs(model: Model, images: Tensor) -> Forward:
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda conv, inputs, output: seen.append((conv, inputs[0].clone())))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    return lambda _: [conv(features) for conv, features in seen]


def measure(width: float, batch: int, rounds: int) -> str:
    chosen, macs = variants(width, batch)
    images = torch.randn(batch, 3, 32, 32, device=choose_device())

    def run(forward: Forward) -> None:
        with torch.inference_mode():
            forward(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    times = interleave({name: lambda forward=f: run(forward) for name, f in chosen.items()}, rounds)
    base = times["base"]
    rows = [
        [
            name,
            f"{macs[name] / macs['base']:.3f}",
            f"{statistics.median(seconds) / statistics.median(base):.3f}",
            f"{min(seconds) / min(base):.3f}",
            f"{statistics.median(seconds) * 1e3:.2f}",
            f"{min(seconds) * 1e3:.2f}",
            f"{batch / statistics.median(seconds):,.0f}",
        ]
        for name, seconds in times.items()
    ]
    columns = [
        "model",
        "MACs / base",
        "time / base (median)",
        "(minimum)",
        "median ms",
        "minimum ms",
        "images/s",
    ]
    share = statistics.median(times["k=7, convs"]) / statistics.median(times["base, convs"])
    return (
        f"batch {batch}, {torch.get_num_threads()} threads, {rounds} rounds\n\n{markdown(columns, rows)}\n\n"
        f"The bare convolutions of k=7 take {share:.3f} of the time of those of the base (medians)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    parts = [measure(given.width, batch, rounds) for batch, rounds in ((1, 200), (64, 15))]
    report("inference", "\n\n".join(parts), given.write)


if __name__ == "__main__":
    main()
