"""How much accuracy does each option of a recipe give or cost each model?

    python benchmarks/ablation.py cifar10-jpeg --jobs 2 --seeds 0

For every row and seed the script trains a narrow VGG-16 with exits 2 and 7 on 20,000 training images, and
measures it on 5,000 other training images after the last epoch. Finished runs are not trained again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

RECIPE = Path(__file__).with_suffix(".toml")
ARCH = "vgg16:width=0.25"
TRAIN, HELD_OUT = 2000, 500  # images a class
SUBMODELS = ("--exits", "2,7")
STEM = ("--step-down", "stem")
NESTEROV = ("--nesterov",)
LINEAR = ("--schedule", "linear")
DISTILL = ("--distill", "base")
COLUMNS = ("", "2", "7")  # --drop of the model in each column
ROWS: dict[str, tuple[str, ...]] = {
    "reference": SUBMODELS,
    "baseline": ("--exits", ""),
    "k=2 alone": ("--drop", "2"),
    "k=7 alone": ("--drop", "7"),
    "k=7 alone, stem": ("--drop", "7", *STEM),
    "shared BN statistics": (*SUBMODELS, "--bn", "shared"),
    "step-down: stem": (*SUBMODELS, *STEM),
    "distill: base": (*SUBMODELS, *DISTILL),
    "distill: chain": (*SUBMODELS, "--distill", "chain"),
    "gradient scale 0.5, 0.25": (*SUBMODELS, "--gradient-scale", "0.5,0.25"),
    "gradient scale 1 to 0.1": (*SUBMODELS, "--final-scale", "0.1"),
    "nesterov": (*SUBMODELS, *NESTEROV),
    "linear schedule": (*SUBMODELS, *LINEAR),
    "no decay of BN and biases": (*SUBMODELS, "--no-decay-norms"),
    "label smoothing 0.1": (*SUBMODELS, "--label-smoothing", "0.1"),
    "EMA 0.998": (*SUBMODELS, "--ema", "0.998"),
    "cutout 8": (*SUBMODELS, "--cutout", "8"),
    "mixup 0.2": (*SUBMODELS, "--mix", "mixup", "--mix-alpha", "0.2"),
    "cutmix 1": (*SUBMODELS, "--mix", "cutmix"),
    "alternating flip": (*SUBMODELS, "--flip", "alternating"),
    "stem, nesterov": (*SUBMODELS, *STEM, *NESTEROV),
    "stem, nesterov, linear": (*SUBMODELS, *STEM, *NESTEROV, *LINEAR),
    "stem, nesterov, distill": (*SUBMODELS, *STEM, *NESTEROV, *DISTILL),
    "stem, nesterov, distill, 1 to 0.1": (*SUBMODELS, *STEM, *NESTEROV, *DISTILL, "--final-scale", "0.1"),
    "baseline, nesterov": ("--exits", "", *NESTEROV),
    "k=2 alone, stem, nesterov": ("--drop", "2", *STEM, *NESTEROV),
    "k=7 alone, stem, nesterov": ("--drop", "7", *STEM, *NESTEROV),
}


def subset(data: Path, folder: Path) -> Path:
    """Fill `folder` with links to the first images of each class: `train/` to train, `val/` to measure."""
    for source in sorted((data / "train").iterdir()):
        files = sorted(source.iterdir())
        parts = {"train": files[:TRAIN], "val": files[TRAIN : TRAIN + HELD_OUT]}
        for part, chosen in parts.items():
            target = folder / part / source.name
            target.mkdir(parents=True, exist_ok=True)
            for file in chosen:
                link = target / file.name
                if not link.exists():
                    link.symlink_to(file.resolve())
    return folder


def command(options: Sequence[str], seed: int, data: Path, out: Path) -> list[str]:
    recipe = ("--recipe", str(RECIPE), "--seed", str(seed))
    where = ("--data", str(data), "--out", str(out), "--device", "cpu")
    return [sys.executable, "-m", "cnsn_cli", "train", "--precision", "fp32", *options, *recipe, *where]


def finished(options: Sequence[str], out: Path) -> bool:
    epochs = tomllib.loads(RECIPE.read_text())["epochs"]
    if "--epochs" in options:
        epochs = int(options[options.index("--epochs") + 1])
    metrics = out / "metrics.jsonl"
    return metrics.exists() and len(metrics.read_text().splitlines()) == epochs


def run(options: Sequence[str], seed: int, data: Path, out: Path) -> None:
    """Train with these options of `cnsn train`, unless it was done before."""
    if finished(options, out):
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        train = [*command(options, seed, data, out), "--force"]
        subprocess.run(train, stderr=log, stdout=log, env=environment, check=True)
    print(f"{out.name}: {accuracies(out)}", flush=True)


def accuracies(out: Path) -> list[float]:
    """The accuracy in % of every model after the last epoch, the base-model first."""
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return [round(100 * result["accuracy"], 2) for result in last["results"]]


def table(rows: Sequence[str], seeds: Sequence[int], runs: Path) -> str:
    lines = ["| row | seeds | base | k=2 | k=7 |", "|---|---|---|---|---|"]
    for row in rows:
        found = [accuracies(folder) for seed in seeds if (folder := place(runs, row, seed)).exists()]
        cells = [cell(values) for values in zip(*found, strict=True)]
        lines.append(f"| {row} | {len(found)} | {' | '.join(_in_columns(row, cells))} |")
    return "\n".join(lines)


def _in_columns(row: str, cells: list[str]) -> list[str]:
    """Pad a row with empty cells; a sub-model that was trained alone goes into its own column."""
    before = COLUMNS.index(ROWS[row][1]) if "--drop" in ROWS[row] else 0
    return [*[""] * before, *cells, *[""] * (len(COLUMNS) - before - len(cells))]


def cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def place(runs: Path, row: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() or c in "=." else "-" for c in row)
    return runs / f"{name}-{seed}"


def chosen_rows(description: str | None, rows: Iterable[str], runs: str) -> argparse.Namespace:
    """The command line of a script that trains `rows`, into the folder `runs`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as a folder of images")
    parser.add_argument("--rows", nargs="*", default=list(rows), choices=list(rows))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / runs)
    return parser.parse_args()


def train_all(
    rows: Iterable[str],
    chosen: argparse.Namespace,
    data: Path,
    options: Callable[[str, int], Sequence[str]],
) -> None:
    """Train every row with every seed; `options(row, seed)` are those of `cnsn train`."""
    with ThreadPoolExecutor(chosen.jobs) as pool:
        jobs = [
            pool.submit(run, options(row, seed), seed, data, place(chosen.runs, row, seed))
            for seed, row in product(chosen.seeds, rows)
        ]
        for job in jobs:
            job.result()


def main() -> None:
    chosen = chosen_rows(__doc__, ROWS, "ablation")
    data = subset(chosen.data, chosen.runs / "data")
    train_all(chosen.rows, chosen, data, lambda row, seed: ("--arch", ARCH, *ROWS[row]))
    print(table(chosen.rows, chosen.seeds, chosen.runs))


if __name__ == "__main__":
    main()
