"""A whole `cnsn train`, from the start of the command to its last file: where does the time go?

The data are random pictures of 32 x 32 pixels as PNG files, made before the clock starts, or the image
folder of --data. The phases are those that `cnsn train --json` reports; `start` is what the command takes
before and after them. Options after `--` go to `cnsn train`.

    python benchmarks/whole_run.py --recipe fast --images 50000 -- --epochs 3
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from timing import markdown, report

CLASSES = 10


def random_pictures(folder: Path, images: int) -> Path:
    """Fill `folder` with `images` training images of 10 classes, and a fifth as many test images."""
    draw = np.random.default_rng(0)
    for part, count in (("train", images), ("test", images // 5)):
        pixels = draw.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        for number in range(CLASSES):
            (folder / part / f"class{number}").mkdir(parents=True)

        def save(number: int, part: str = part, pixels: np.ndarray = pixels) -> None:
            path = folder / part / f"class{number % CLASSES}" / f"{number}.png"
            Image.fromarray(pixels[number]).save(path, compress_level=1)

        with ThreadPoolExecutor() as pool:
            list(pool.map(save, range(count)))
    return folder


def run(arch: str, recipe: str, data: Path, more: list[str]) -> tuple[dict[str, float], str, float]:
    """The seconds of each phase, the start line, and the images a second of the last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "--arch", arch, "--exits", "2,7", "--recipe", recipe, "--data", str(data), "--json"]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "cnsn_cli", *words, "--out", f"{folder}/run", *more],
            capture_output=True,
            text=True,
            check=False,
        )
        total = time.perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr)
        phases = json.loads(done.stdout)["phases"]
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    (opening,) = [line for line in done.stderr.splitlines() if line.startswith("training on ")]
    speed = json.loads(lines[-1])["images_per_second"]
    return {"start": total - sum(phases.values()), **phases, "whole command": total}, opening, speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", default="vgg16")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--images", type=int, default=50_000, help="random training images")
    parser.add_argument("--data", type=Path, help="an image folder in place of random images")
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    parser.add_argument("more", nargs="*", help="options of cnsn train, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or random_pictures(Path(folder), given.images)
        phases, opening, speed = run(given.arch, given.recipe, data, given.more)
    rows = [[name, f"{seconds:.1f}"] for name, seconds in phases.items()]
    text = f"{opening}\n\n{markdown(['phase', 'seconds'], rows)}\n\nlast epoch: {speed:,.0f} images/s"
    report(f"whole run, {given.recipe}", text, given.write)


if __name__ == "__main__":
    main()
