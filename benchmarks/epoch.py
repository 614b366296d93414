"""The time of a training epoch with its data loading: cnsn against the usual PyTorch loop.

plain  torchvision.datasets.CIFAR10 in memory, PIL transforms, DataLoader with 2 workers, and the paper's
       literal training step (one forward pass per model)
cnsn   the epoch of cnsn: pixels in memory, augmentation on whole batches, one forward pass

Both train on the same images, with the same batch size and number of images an epoch. --data names an image
folder, such as CIFAR-10 as JPEG files; it is read into memory before the clock starts.
"""

import argparse
import statistics
from collections.abc import Iterator

import torch
from literal import CUTS, Plain, weighted
from timing import interleave, markdown, ratio, report
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from cnsn_cli import load_dataset, load_recipe
from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import Dataset
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.device import choose_device
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.trainer import Epoch, Trainer


def in_cifar10(split: MemorySplit, dataset: Dataset) -> CIFAR10:
    """Our pixels in torchvision's data set class, so that torchvision's code reads and transforms them."""
    cifar = CIFAR10.__new__(CIFAR10)
    cifar.data = split.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    cifar.targets = split.labels.tolist()
    cifar.target_transform = None
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    cifar.transform = transforms.Compose([*steps, transforms.Normalize(dataset.task.mean, dataset.task.std)])
    return cifar


def plain_epochs(dataset: Dataset, width: float, batch: int, device: torch.device) -> Iterator[None]:
    network = Plain(width).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=6e-4)
    cifar = in_cifar10(dataset.train, dataset)
    loader = DataLoader(cifar, batch, shuffle=True, num_workers=2, drop_last=True)
    while True:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            sum(weighted(name, network.run(name, images), labels) for name in CUTS).backward()
            optimizer.step()
        yield


def our_epochs(dataset: Dataset, width: float, batch: int, device: torch.device) -> Iterator[None]:
    backbone = registry.find(f"vgg16:width={width}").build(dataset.task)
    network = place(Cnsn(backbone, (2, 7), dataset.task), device)
    recipe = load_recipe("paper", {"batch_size": batch, "epochs": 1000})
    few = dataset.test.take(torch.arange(1))  # keeps the evaluation, which is not compared, short
    on_cuda = device.type == "cuda"
    trainer = Trainer(network, dataset.train, few, recipe, "bf16" if on_cuda else "fp32", on_cuda)
    for event in trainer.run():
        if isinstance(event, Epoch):
            yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=10_000, help="images an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()

    whole = load_dataset(given.data)
    picked = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))[: given.images]
    dataset = Dataset(whole.train.take(picked), whole.test, whole.task)
    device = choose_device()
    plain = plain_epochs(dataset, given.width, given.batch, device)
    ours = our_epochs(dataset, given.width, given.batch, device)
    times = interleave({"plain": lambda: next(plain), "cnsn": lambda: next(ours)}, given.rounds)
    rows = [
        [
            name,
            f"{len(picked) / statistics.median(seconds):,.0f}",
            f"{statistics.median(seconds):.2f}",
            f"{min(seconds):.2f}",
            f"{ratio(times, name, 'plain'):.3f}",
        ]
        for name, seconds in times.items()
    ]
    columns = ["loop", "images/s", "median s", "minimum s", "x plain (median)"]
    size = f"VGG-16 at width {given.width}, exits 2,7, batch {given.batch}, {len(picked):,} images an epoch"
    report("epoch", f"{size}, {given.rounds} rounds\n\n{markdown(columns, rows)}", given.write)


if __name__ == "__main__":
    main()
