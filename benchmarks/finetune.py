"""What do pretrained weights give after two epochs, and what does a fitted step-down conv give?

    python benchmarks/finetune.py cifar10-jpeg

A ResNet-18 is trained shortly on five classes of CIFAR-10, enlarged to 64 pixels. Each row trains a network
with two sub-models on four other classes, two epochs long, and tells the accuracy of every model on test
images after each epoch. Finished runs are not trained again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ARCH, SIZE = "torchvision:resnet18", "64"
FIRST = ("airplane", "automobile", "bird", "cat", "deer")
SECOND = ("dog", "frog", "horse", "ship")  # another number, so the classifier is new
IMAGES = {"first": 200, "second": 150}  # training images a class
TEST_IMAGES = 100
EXITS = ("--exits", "5,13")
SHORT = ("--epochs", "2", "--val-split", "0")
RANDOM = ("--step-down-init", "random")
PATCH = ("--step-down", "patch")
ROWS: dict[str, tuple[str, ...]] = {
    "quick, from scratch": (*EXITS, "--recipe", "quick", *SHORT),
    "finetune, random": (*EXITS, "--recipe", "finetune", *SHORT, *RANDOM),
    "finetune": (*EXITS, "--recipe", "finetune", *SHORT),
    "finetune, patch, random": (*EXITS, "--recipe", "finetune", *SHORT, *PATCH, *RANDOM),
    "finetune, patch": (*EXITS, "--recipe", "finetune", *SHORT, *PATCH),
}


def linked(data: Path, classes: tuple[str, ...], images: int, folder: Path) -> Path:
    """A folder with the first images of some classes."""
    for part, most in (("train", images), ("test", TEST_IMAGES)):
        for name in classes:
            target = folder / part / name
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((data / part / name).iterdir())[:most]:
                if not (target / file.name).exists():
                    (target / file.name).symlink_to(file.resolve())
    return folder


def run(options: tuple[str, ...], data: Path, out: Path, seed: int) -> None:
    if (out / "plot.png").exists():  # the last file of a run
        return
    words = ("--arch", ARCH, "--data", str(data), "--image-size", SIZE, "--precision", "fp32")
    command = [sys.executable, "-m", "cnsn_cli", "train", *words, "--out", str(out), "--force"]
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(out / "log", "w") as log:
        subprocess.run(
            [*command, "--seed", str(seed), *options], stdout=log, stderr=log, env=environment, check=True
        )


def accuracies(out: Path) -> str:
    """The accuracies in % of all models after each epoch."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return "; ".join(
        " / ".join(f"{100 * result['accuracy']:.2f}" for result in line["results"]) for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as a folder of images")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune"))
    chosen = parser.parse_args()
    first = linked(chosen.data, FIRST, IMAGES["first"], chosen.runs / "first")
    second = linked(chosen.data, SECOND, IMAGES["second"], chosen.runs / "second")
    run(("--exits", "", "--recipe", "quick"), first, chosen.runs / "base", 0)
    print(f"base: {accuracies(chosen.runs / 'base')}", flush=True)
    for seed in chosen.seeds:
        for row in chosen.rows:
            out = chosen.runs / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
            start = () if "scratch" in row else ("--init", str(chosen.runs / "base" / "best.safetensors"))
            run((*ROWS[row], *start), second, out, seed)
            print(f"| {row} | {seed} | {accuracies(out)} |", flush=True)


if __name__ == "__main__":
    main()
