"""Reading photos for training: cnsn's loader against torchvision's ImageFolder, with equal augmentation.

torchvision  ImageFolder, v2.RandomResizedCrop(224) + v2.RandomHorizontalFlip + v2.PILToTensor, DataLoader
cnsn         --crop resized --flip random: JPEGs decoded at the scale that a crop needs

Both read with two workers, in batches of 32. The script makes 500 photos of 3 megapixels itself: noise with
the spectrum of photos, saved with `--quality`. `decoded smaller` compares what cnsn reads with a full decode
of the same photo and the same resize, for ten random crops of each of 50 photos and for their middles.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import interleave, markdown, ratio, report
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cnsn_cli import load_recipe
from cnsn_cli.data import split
from cnsn_cli.data.datasets import Dataset, load_dataset
from cnsn_cli.data.image_files import read_image
from cnsn_cli.data.views import Middle, View
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.photos import RandomPart, changed, drawing

WIDTH, HEIGHT, SIDE, BATCH, WORKERS = 2048, 1536, 224, 32, 2
STEEPNESS = 1.25  # amplitudes fall with this power of the frequency


def make_photo(path: Path, seed: int, quality: int) -> None:
    generator = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    falling = 1 / np.maximum(np.hypot(down, across), 1 / WIDTH) ** STEEPNESS
    layers = []
    for _ in range(3):  # brightness, and two colours that change more slowly
        waves = generator.normal(size=(*falling.shape, 2)) @ np.array([1, 1j])
        layer = np.fft.irfft2(waves * falling, s=(HEIGHT, WIDTH))
        layers.append(layer / layer.std())
    grey, first, second = layers
    pixels = np.stack([grey + 0.3 * first, grey - 0.3 * first, grey + 0.3 * second], -1) * 45 + 120
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=quality)


def make_folder(root: Path, photos: int, quality: int) -> None:
    """`photos` training photos of two classes, and two test photos."""
    paths = [root / "train" / "ab"[number % 2] / f"{number:04}.jpg" for number in range(photos)]
    paths += [root / "test" / name / "0.jpg" for name in "ab"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(make_photo, paths, range(len(paths)), repeat(quality)))


def usual_epochs(root: Path) -> Iterator[None]:
    steps = [v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    loader = DataLoader(
        ImageFolder(root / "train", v2.Compose(steps)), BATCH, shuffle=True, num_workers=WORKERS
    )
    while True:
        for _ in loader:
            pass
        yield


def our_epochs(dataset: Dataset) -> Iterator[None]:
    recipe = load_recipe("quick", {"crop": "resized", "flip": "random", "batch_size": BATCH, "epochs": 1000})
    for epoch in range(1, recipe.epochs):
        plan = plan_epoch(len(dataset.train), recipe, epoch, torch.device("cpu"))
        batches = list(plan.order.split(BATCH))
        photos = changed(dataset.train, recipe, dataset.task, epoch).batches(batches)
        for indices, pixels in zip(batches, photos, strict=True):
            plan.augment(pixels, indices)
        yield


def differences(paths: list[Path]) -> dict[str, list[float]]:
    """The mean difference of each image from the same part of the whole photo, on values from 0 to 255."""
    found: dict[str, list[float]] = {"random crop": [], "middle": []}
    for number, path in enumerate(paths):
        whole = read_image(str(path))
        for draw in range(10):
            with drawing(0, draw, number):
                found["random crop"].append(
                    difference(path, whole, RandomPart(SIDE, 3, (0.08, 1), (0.75, 1.3333)))
                )
        found["middle"].append(difference(path, whole, Middle(SIDE, 3, 0.875)))
    return found


def difference(path: Path, whole: Image.Image, view: View) -> float:
    ours = np.asarray(read_image(str(path), view), float)
    return float(np.abs(ours - np.asarray(view.cut(whole, (0, 0, *whole.size)), float)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs: 90 as cameras, 75 as the web")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()

    split.MOST_WORKERS = WORKERS
    torch.set_num_threads(1)  # this process only flips: a second thread would wait on the core of a worker
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folder(root, given.photos, given.quality)
        paths = sorted((root / "train").rglob("*.jpg"))
        dataset = load_dataset(str(root), image_size=SIDE, keep=False)
        usual, ours = usual_epochs(root), our_epochs(dataset)
        times = interleave({"torchvision": lambda: next(usual), "cnsn": lambda: next(ours)}, given.rounds)
        apart = differences(paths[:50])
        size = statistics.mean(path.stat().st_size for path in paths)
    speeds = [
        [
            name,
            f"{given.photos / statistics.median(seconds):.1f}",
            f"{given.photos / min(seconds):.1f}",
            f"{ratio(times, name, 'torchvision'):.2f}",
        ]
        for name, seconds in times.items()
    ]
    decoded = [[name, f"{statistics.mean(all_):.2f}", f"{max(all_):.2f}"] for name, all_ in apart.items()]
    facts = (
        f"{given.photos} JPEGs of {WIDTH} x {HEIGHT} pixels, quality {given.quality}, {size / 1e6:.2f} MB on "
        f"average; {SIDE} px, batches of {BATCH}, {WORKERS} workers, {given.rounds} rounds"
    )
    columns = ["loader", "images/s (median)", "(fastest)", "x torchvision (median)"]
    smaller = ["decoded smaller", "mean difference of 255", "of the worst image"]
    text = f"{facts}\n\n{markdown(columns, speeds)}\n\n{markdown(smaller, decoded)}"
    report(f"photos, quality {given.quality}", text, given.write)


if __name__ == "__main__":
    main()
