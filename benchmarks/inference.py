"""Latency and throughput of the base-model, k=2 and k=7 of VGG-16, as they are and with folded BN.

The ratios stand beside the ratios of MACs: dropping layers saves what it should where they agree. At batch 1
the weights have to come from memory, and k=7 keeps 89 % of their bytes.
"""

import argparse
import statistics

import torch
from timing import interleave, markdown, report

from cnsn_cli import registry
from cnsn_cli.complexity import model_costs
from cnsn_cli.device import choose_device, place
from cnsn_cli.folding import fold
from cnsn_cli.network import Cnsn, Model
from cnsn_cli.task import Task


def models(width: float) -> tuple[dict[str, Model], dict[str, int]]:
    task, device = Task.plain(), choose_device()
    network = Cnsn(registry.build(f"vgg16:width={width}", task), (2, 7), task)
    network(torch.randn(8, 3, 32, 32))  # statistics that are not those of a fresh network
    network = place(network, device).eval()
    names = dict(zip(("base", "k=2", "k=7"), network.models(), strict=True))
    macs = {name: cost.macs for name, cost in zip(names, model_costs(network), strict=True)}
    folded = {f"{name}, folded": place(fold(model), device) for name, model in names.items()}
    return {**names, **folded}, macs | {f"{name}, folded": count for name, count in macs.items()}


def measure(width: float, batch: int, rounds: int) -> str:
    chosen, macs = models(width)
    images = torch.randn(batch, 3, 32, 32, device=choose_device())

    def run(model: Model) -> None:
        with torch.inference_mode():
            model(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    times = interleave({name: lambda model=model: run(model) for name, model in chosen.items()}, rounds)
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
    return f"batch {batch}, {torch.get_num_threads()} threads, {rounds} rounds\n\n{markdown(columns, rows)}"


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
