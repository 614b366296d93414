"""A training run in a folder: from names of an architecture and a data set to files on the disk."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from cnsn_cli import registry
from cnsn_cli.checkpoint import load, save, versions
from cnsn_cli.complexity import model_costs
from cnsn_cli.data import Dataset, load_dataset
from cnsn_cli.device import Precision, choose_device, default_precision, place
from cnsn_cli.errors import DataError, OutputError, RecipeError, TrainingError
from cnsn_cli.evaluation import ModelResult, evaluate
from cnsn_cli.files import write_text
from cnsn_cli.metadata import FORMAT, Metadata, ModelRecord, Selection
from cnsn_cli.network import Cnsn
from cnsn_cli.picture import draw
from cnsn_cli.recipe import Recipe
from cnsn_cli.split import Split
from cnsn_cli.state import (
    Request,
    State,
    differences,
    environment,
    read_state,
    restore,
    save_state,
)
from cnsn_cli.task import Task
from cnsn_cli.training import Epoch, Step, Trainer

FILES = ("best.safetensors", "last.safetensors", "state.safetensors", "metrics.jsonl", "recipe.toml")


@dataclass(frozen=True)
class Started:
    """All is ready: what will be trained, on how many images, and which images choose the best epoch."""

    train_images: int
    held_out_images: int
    steps_per_epoch: int
    epochs_done: int
    selection: Literal["test", "validation"]
    device: torch.device


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the best epoch, and how every model of it does on the test images."""

    folder: Path
    best_epoch: int
    selection: Literal["test", "validation"]
    models: list[ModelRecord]


Watch = Callable[[Started | Step | Epoch], None]


def train(
    arch: str,
    exits: tuple[int, ...],
    data: str,
    recipe: Recipe,
    out: str | Path,
    *,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    in_channels: int = 3,
    classes: int | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    compiled: bool | None = None,
    force: bool = False,
    watch: Watch = lambda event: None,
) -> Run:
    """Train a network and write the run folder `out`; `watch` is told of every event.

    On CUDA `precision` is bf16 and the forward pass `compiled` where nothing else is asked for. Raises a
    CnsnError; what was written after earlier epochs is then whole and stays.
    """
    chosen = choose_device(device)
    folder = Path(out)
    refuse_existing(folder, force)
    request = Request(
        arch=arch,
        exits=exits,
        data=data,
        data_dir=str(data_dir),
        image_size=image_size,
        in_channels=in_channels,
        device=chosen.type,
        precision=precision or default_precision(chosen),
        compiled=chosen.type == "cuda" if compiled is None else compiled,
        recipe=recipe,
    )
    trainer, dataset = prepare(request)
    if classes not in (None, dataset.task.num_classes):
        raise DataError(f"{data} has {dataset.task.num_classes} classes, not {classes}: leave out --classes")
    return _run(Recorder(folder, trainer, request), dataset, watch)


def resume(folder: str | Path, override: bool = False, watch: Watch = lambda event: None) -> Run:
    """Go on with the run in `folder` after its last whole epoch, to the same weights bit for bit.

    That holds on the same device, with the same versions and threads: where they differ, TrainingError is
    raised unless `override` accepts it. Raises CheckpointError where there is no such run.
    """
    path = Path(folder) / "state.safetensors"
    state = read_state(path)
    changed = differences(state.environment, environment(choose_device(state.request.device)))
    if changed and not override:
        raise TrainingError(
            f"{folder} was trained elsewhere ({changed}): give --override to go on all the same"
        )
    trainer, dataset = prepare(state.request)
    restore(path, trainer)
    trainer.epoch = state.epoch
    return _run(Recorder(Path(folder), trainer, state.request, state.metrics), dataset, watch)


def prepare(request: Request) -> tuple[Trainer, Dataset]:
    """All that a run needs before its first step. Raises a CnsnError where it cannot start."""
    registry.find(request.arch)
    dataset = load_dataset(request.data, request.data_dir, request.image_size, request.in_channels)
    fitted, held_out = split_off(dataset, request.recipe)
    network = build_network(request.arch, request.exits, dataset.task, request.recipe)
    network = place(network, torch.device(request.device))
    return Trainer(network, fitted, held_out, request.recipe, request.precision, request.compiled), dataset


def _run(recorder: "Recorder", dataset: Dataset, watch: Watch) -> Run:
    trainer = recorder.trainer
    selection = trainer.recipe.selection
    images = len(trainer.train), len(trainer.held_out)
    watch(Started(*images, trainer.steps_per_epoch, trainer.epoch, selection, trainer.device))
    for event in trainer.run():
        if isinstance(event, Epoch):
            recorder.record(event)
        watch(event)
    run = recorder.finish(dataset.test)
    draw([run.folder], run.folder / "plot.png")
    return run


def refuse_existing(folder: Path, force: bool) -> None:
    """Raises OutputError where `folder` holds a run and `force` is not given."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give --out another name")
    if not force and any((folder / name).exists() for name in FILES):
        raise OutputError(
            f"{folder} holds a run already: give --force to replace it, or --out another folder"
        )


def split_off(dataset: Dataset, recipe: Recipe) -> tuple[Split, Split]:
    """The images to train on and those that choose the best epoch: the test images without `val_split`."""
    if recipe.selection == "test":
        return dataset.train, dataset.test
    from sklearn.model_selection import train_test_split

    labels = dataset.train.labels
    try:
        fitted, held_out = train_test_split(
            torch.arange(len(labels)), test_size=recipe.val_split, stratify=labels, random_state=recipe.seed
        )
    except ValueError as error:
        raise RecipeError(
            f"val_split = {recipe.val_split} of {len(labels)} images leaves a part with fewer images than "
            f"the {dataset.task.num_classes} classes"
        ) from error
    return dataset.train.take(fitted), dataset.train.take(held_out)


def build_network(arch: str, exits: tuple[int, ...], task: Task, recipe: Recipe) -> Cnsn:
    """A network with random weights, drawn with the seed of the recipe."""
    torch.manual_seed(recipe.seed)
    return Cnsn(registry.build(arch, task), exits, task, recipe.bn)


def describe(network: Cnsn, arch: str, data: str, recipe: Recipe, precision: Precision = "fp32") -> Metadata:
    """All that can be said of a network before it is trained."""
    models = [
        ModelRecord(first_unit=model.first_unit, **vars(cost))
        for model, cost in zip(network.models(), model_costs(network), strict=True)
    ]
    return Metadata(
        format=FORMAT,
        kind="network",
        arch=arch,
        provider=registry.provider(registry.find(arch)),
        task=network.task,
        bn=network.bn,
        precision=precision,
        models=models,
        data=data,
        recipe=recipe.model_dump(mode="json"),
        versions=versions(),
    )


class Recorder:
    """Writes the run folder after each epoch; `metrics` are the lines of the epochs before."""

    def __init__(self, folder: Path, trainer: Trainer, request: Request, metrics: str = "") -> None:
        self.folder, self.trainer, self.request, self.metrics = folder, trainer, request, metrics
        folder.mkdir(parents=True, exist_ok=True)  # where that fails, it must not be after an epoch
        self.metadata = describe(
            trainer.network, request.arch, request.data, request.recipe, request.precision
        )
        epochs = [epoch_of(line) for line in metrics.splitlines()]
        self.best = max(epochs, key=lambda epoch: epoch.mean_accuracy, default=None)

    def record(self, epoch: Epoch) -> None:
        """Write `last`, the state of the training, the metrics so far, and `best` if it is the best yet.

        Files of an older run are replaced here, and not before there is something to replace them.
        """
        self._save("last.safetensors", epoch)
        if self.best is None or epoch.mean_accuracy > self.best.mean_accuracy:
            self.best = epoch
            self._save("best.safetensors", epoch)
        self.metrics += json.dumps({**asdict(epoch), "selection": self.trainer.recipe.selection}) + "\n"
        self._save_state()
        write_text(self.folder / "metrics.jsonl", self.metrics)
        write_text(self.folder / "recipe.toml", self.trainer.recipe.to_toml())

    def finish(self, test: Split) -> Run:
        """Load the best network, and see how it does on the test images."""
        assert self.best is not None  # a recipe has at least one epoch
        results = self.best.results
        if self.trainer.recipe.selection == "validation":
            network = load(self.folder / "best.safetensors")
            results = evaluate(place(network, self.trainer.device), test)
        selection = self.trainer.recipe.selection
        return Run(self.folder, self.best.epoch, selection, with_results(self.metadata.models, results))

    def _save(self, name: str, epoch: Epoch) -> None:
        selection = Selection(images=self.trainer.recipe.selection, epoch=epoch.epoch)
        models = with_results(self.metadata.models, epoch.results)
        metadata = self.metadata.model_copy(update={"models": models, "selection": selection})
        save(self.folder / name, self.trainer.network, metadata)

    def _save_state(self) -> None:
        state = State(
            epoch=self.trainer.epoch,
            request=self.request,
            environment=environment(self.trainer.device),
            metrics=self.metrics,
        )
        save_state(self.folder / "state.safetensors", self.trainer, state)


def epoch_of(line: str) -> Epoch:
    """An epoch from its line of metrics.jsonl."""
    content = json.loads(line)
    del content["selection"]
    for part in ("train", "results"):
        content[part] = [ModelResult(**result) for result in content[part]]
    return Epoch(**content)


def with_results(models: list[ModelRecord], results: list[ModelResult]) -> list[ModelRecord]:
    return [
        model.model_copy(update={"accuracy": result.accuracy, "loss": result.loss})
        for model, result in zip(models, results, strict=True)
    ]
