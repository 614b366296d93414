"""Does a short search rank sub-models as longer training does, and what does it cost?

    python benchmarks/search.py cifar10-jpeg

One search trains a narrow VGG-16 with twelve candidates for three epochs. Then each candidate is trained
with the base-model alone for ten epochs. The script tells Spearman's rank correlation between the accuracies
of the search and those of these networks, how far the chosen candidates are below the best one, and the time
of the search against that of three epochs with two sub-models. Finished runs are not trained again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import ablation
from scipy.stats import spearmanr

from cnsn_cli.searching.grid import LEAST

BUDGETS, WIDTHS = "8M,4.5M,2.2M", "0.5"
SEARCHED = ("--max-macs", BUDGETS, "--widths", WIDTHS, "--epochs", "3")


def cnsn(command: str, options: tuple[str, ...], data: Path, out: Path, last: str) -> float:
    """The seconds that a command took, now or in an earlier call of this script."""
    taken = out.parent / f"{out.name}.seconds"
    if not (out / last).exists():
        out.mkdir(parents=True, exist_ok=True)
        words = (
            "--arch",
            ablation.ARCH,
            "--recipe",
            str(ablation.RECIPE),
            "--precision",
            "fp32",
            "--data",
            str(data),
            "--device",
            "cpu",
        )
        start = time.perf_counter()
        with open(out.parent / f"{out.name}.log", "w") as log:
            subprocess.run(
                [sys.executable, "-m", "cnsn_cli", command, *words, *options, "--out", str(out), "--force"],
                stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
            )  # fmt: skip
        taken.write_text(f"{time.perf_counter() - start:.1f}")
    return float(taken.read_text()) if taken.exists() else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as a folder of images")
    parser.add_argument("--images", type=int, default=ablation.TRAIN, help="training images a class")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    chosen = parser.parse_args()
    ablation.TRAIN, ablation.HELD_OUT = chosen.images, chosen.images * 2 // 5
    data = ablation.subset(chosen.data, chosen.runs / "data")

    searching = cnsn("search", SEARCHED, data, chosen.runs / "search", "search.json")
    training = cnsn("train", ("--exits", "2,7", "--epochs", "3"), data, chosen.runs / "two", "plot.png")
    print(f"search {searching:.0f} s, training with two sub-models {training:.0f} s", flush=True)
    print(f"ratio {searching / training:.2f}", flush=True)

    found = json.loads((chosen.runs / "search" / "search.json").read_text())
    candidates = found["results"][1:]
    reached = {}
    for candidate in candidates:
        out = chosen.runs / candidate["name"]
        cnsn("train", ("--exits", candidate["name"]), data, out, "plot.png")
        reached[candidate["name"]] = ablation.accuracies(out)[1]
        print(
            f"| {candidate['name']} | {100 * candidate['accuracy']:.2f} | {reached[candidate['name']]:.2f} |"
        )
    rank = spearmanr([c["accuracy"] for c in candidates], [reached[c["name"]] for c in candidates])
    print(f"Spearman {rank.statistic:.3f}")
    for pick in found["picks"]:
        serving = [c["name"] for c in candidates if LEAST * pick["budget"] <= c["macs"] <= pick["budget"]]
        best = max(serving, key=lambda name: reached[name])
        below = reached[best] - reached[pick["best"]]
        print(f"{pick['budget']:,}: chosen {pick['best']}, best {best}, {below:.2f} points below it")


if __name__ == "__main__":
    main()
