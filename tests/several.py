"""A program that tests/test_distributed.py runs in several processes: -m tests.several STORIES FOLDER DATA"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
import typer

from cnsn_cli import distributed, main
from cnsn_cli.data import datasets, split
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.evaluation.accuracy import evaluate
from cnsn_cli.training.metrics import Step
from cnsn_cli.training.recipe import Recipe, load_recipe
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY, built

STEPS = 12  # of two epochs of `recipe`


class Stop(Exception):
    pass


def recipe(**changes: object) -> Recipe:
    """A recipe that uses everything that has a state. 48 images are trained on."""
    usual = {"epochs": 2, "batch_size": 8, "lr": 0.02, "crop_padding": 2, "val_split": 0.25, "ema": 0.8}
    return load_recipe("quick", {**usual, "distill": "base", "gradient_scale": (0.5,), **changes})


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@float64()
def steps(folder: Path, images: str) -> None:
    """Train an epoch of 3 steps in float64 with frozen BN statistics, and evaluate 7 images."""
    dataset = load_dataset(images, in_channels=1)  # another task, because normalisation is cached in float64
    torch.manual_seed(0)
    network = built(TINY, (1, "@0.5"), dataset.task).eval()
    network.train = lambda mode=True: network
    with distributed.joined():
        chosen = recipe(epochs=1, ema=0, gradient_scale=(0.5, 0.25), label_smoothing=0.1)
        train_images, seven = dataset.train.take(torch.arange(24)), dataset.test.take(torch.arange(7))
        trainer = Trainer(network, train_images, seven, chosen)
        *_, epoch = trainer.run()
        results = evaluate(network, seven)
    if distributed.is_first():
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        facts = {"epoch": numbers(epoch.train), "pulls": numbers(epoch.pulls), "results": numbers(results)}
        tensors = {"gradients": gradients, "weights": network.state_dict()}
        torch.save({**facts, **tensors}, folder / "facts.pt")


def numbers(rows: Sequence[Any]) -> list[float]:
    return [value for row in rows for value in asdict(row).values() if not isinstance(value, str)]


def die(folder: Path, images: str) -> None:
    """A whole run, and a run whose second process is killed in step 5."""
    train(TINY, ("4@0.5",), images, recipe(), folder / "whole")
    numbers = count(1)

    def watch(event: object) -> None:
        if isinstance(event, Step) and next(numbers) == 5 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train(TINY, ("4@0.5",), images, recipe(), folder / "cut", save_every="3", watch=watch)


def hang(folder: Path, images: str) -> None:
    """A run whose second process stops answering in step 5."""
    numbers = count(1)

    def watch(event: object) -> None:
        if isinstance(event, Step) and next(numbers) == 5 and distributed.rank() == 1:
            (folder / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    train(TINY, (1,), images, recipe(), folder / "cut", save_every="3", watch=watch)


def every_step(folder: Path, images: str) -> None:
    """With dropout: a whole run, and for each step a run that stops there and is resumed."""
    train("dropout", (1,), images, recipe(), folder / "whole")
    for step in range(1, STEPS + 1):
        numbers = count(1)

        def watch(event: object, step: int = step, numbers: count = numbers) -> None:
            if isinstance(event, Step) and next(numbers) == step:
                raise Stop

        try:
            train("dropout", (1,), images, recipe(), folder / f"{step}", save_every="1", watch=watch)
        except Stop:
            torch.manual_seed(99)
        resume(folder / f"{step}")


def tell(stories: str, folder: Path, images: str, workers: int | None = None) -> None:
    if workers is not None:
        datasets.MEMORY_LIMIT = 0  # images are read by workers
        split._cores = lambda: workers
    for story in stories.split(","):
        {"steps": steps, "die": die, "hang": hang, "every-step": every_step}[story](folder, images)


if __name__ == "__main__":
    main.app = typer.Typer(pretty_exceptions_enable=False)
    main.app.command()(tell)
    main.main()
