"""A training run in a folder: from names of an architecture and a data set to files on the disk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from cnsn_cli import registry
from cnsn_cli.balance import Pull
from cnsn_cli.building import build_around, build_network, describe, load_base
from cnsn_cli.checkpoint import load, save
from cnsn_cli.data import Dataset, load_dataset
from cnsn_cli.device import Precision, choose_device, default_precision, place
from cnsn_cli.errors import DataError, RecipeError, TrainingError
from cnsn_cli.evaluation import ModelResult, evaluate
from cnsn_cli.files import write_text
from cnsn_cli.metadata import ModelRecord, Selection
from cnsn_cli.network import Model
from cnsn_cli.recipe import Recipe
from cnsn_cli.runfolder import check_space, locked, refuse_existing
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
from cnsn_cli.training import Epoch, Step, Trainer


@dataclass(frozen=True)
class Started:
    """All is ready: what will be trained, on how many images, and which images choose the best epoch.

    `skipped` says of each image that was left out what is wrong with it.
    """

    train_images: int
    held_out_images: int
    steps_per_epoch: int
    epochs_done: int
    selection: Literal["test", "validation"]
    device: torch.device
    skipped: tuple[str, ...]


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
    drop: int | None = None,
    freeze_base: str | Path | None = None,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    in_channels: int = 3,
    classes: int | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    compiled: bool | None = None,
    force: bool = False,
    skip_bad: bool = False,
    watch: Watch = lambda event: None,
) -> Run:
    """Train a network and write the run folder `out`; `watch` is told of every event.

    With `drop` in place of `exits`, the sub-model at that detach point is trained alone. `freeze_base` names
    a file whose base-model gets sub-models, and stays as it is. With `skip_bad`, images that cannot be read
    are left out. On CUDA `precision` is bf16 and the forward
    pass `compiled` where nothing else is asked for. Raises a CnsnError; what was written after earlier
    epochs is then whole and stays.
    """
    chosen = choose_device(device)
    folder = Path(out)
    refuse_existing(folder, force)
    request = Request(
        arch=arch,
        exits=exits,
        drop=drop,
        freeze_base=None if freeze_base is None else str(freeze_base),
        data=data,
        data_dir=str(data_dir),
        image_size=image_size,
        in_channels=in_channels,
        skip_bad=skip_bad,
        device=chosen.type,
        precision=precision or default_precision(chosen),
        compiled=chosen.type == "cuda" if compiled is None else compiled,
        recipe=recipe,
    )
    trainer, dataset = prepare(request)
    if classes not in (None, dataset.task.num_classes):
        raise DataError(f"{data} has {dataset.task.num_classes} classes, not {classes}: leave out --classes")
    with locked(folder):
        refuse_existing(folder, force)  # once more, now that nobody else can fill it
        return _run(Recorder(folder, trainer, request), dataset, watch)


def resume(folder: str | Path, override: bool = False, watch: Watch = lambda event: None) -> Run:
    """Go on with the run in `folder` after its last whole epoch, to the same weights bit for bit.

    That holds on the same device, with the same versions and threads: where they differ, TrainingError is
    raised unless `override` accepts it. Raises CheckpointError where there is no such run.
    """
    folder = Path(folder)
    read_state(folder / "state.safetensors")  # there must be a run, before its folder is locked
    with locked(folder):
        return _resume(folder, override, watch)


def _resume(folder: Path, override: bool, watch: Watch) -> Run:
    path = folder / "state.safetensors"
    state = read_state(path)
    changed = differences(state.environment, environment(choose_device(state.request.device)))
    if changed and not override:
        raise TrainingError(
            f"{folder} was trained elsewhere ({changed}): give --override to go on all the same"
        )
    trainer, dataset = prepare(state.request)
    restore(path, trainer, state)
    trainer.epoch = state.epoch
    recorder = Recorder(folder, trainer, state.request, state.metrics, state.epochs())
    return _run(recorder, dataset, watch)


def prepare(request: Request) -> tuple[Trainer, Dataset]:
    """All that a run needs before its first step. Raises a CnsnError where it cannot start."""
    registry.find(request.arch)
    arch, exits, recipe = request.arch, request.exits, request.recipe
    base = load_base(Path(request.freeze_base), arch) if request.freeze_base else None
    dataset = load_dataset(
        request.data, request.data_dir, request.image_size, request.in_channels, request.skip_bad
    )
    if base:
        dataset = _for_base(dataset, base, request)
    fitted, held_out = split_off(dataset, recipe)
    network = (
        build_around(base, arch, exits, recipe)
        if base
        else build_network(arch, exits, dataset.task, recipe, request.drop)
    )
    network = place(network, torch.device(request.device))
    return Trainer(network, fitted, held_out, recipe, request.precision, request.compiled), dataset


def _for_base(dataset: Dataset, base: Model, request: Request) -> Dataset:
    """The data set normalised as `base` knows it. Raises DataError where its images or classes differ."""
    for words, found, wanted in (
        ("classes", dataset.task.class_names, base.task.class_names),
        ("pixels a side", dataset.task.image_size, base.task.image_size),
        ("channels", dataset.task.in_channels, base.task.in_channels),
    ):
        if found != wanted:
            raise DataError(
                f"{request.data} has {words} {found}, {request.freeze_base} was trained on {wanted}"
            )
    return replace(dataset, task=base.task)


def _run(recorder: "Recorder", dataset: Dataset, watch: Watch) -> Run:
    trainer = recorder.trainer
    selection = trainer.recipe.selection
    images = len(trainer.train), len(trainer.held_out)
    watch(
        Started(*images, trainer.steps_per_epoch, trainer.epoch, selection, trainer.device, dataset.skipped)
    )
    for event in trainer.run():
        if isinstance(event, Epoch):
            recorder.record(event)
        watch(event)
    return recorder.finish(dataset.test)


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


class Recorder:
    """Writes the run folder after each epoch; `metrics` are the lines of the `epochs` before."""

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        request: Request,
        metrics: str = "",
        epochs: Sequence[Epoch] = (),
    ) -> None:
        self.folder, self.trainer, self.request, self.metrics = folder, trainer, request, metrics
        check_space(folder, file_sizes(trainer))
        self.metadata = describe(
            trainer.network, request.arch, request.data, request.recipe, request.precision
        )
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
        save(self.folder / name, self.trainer.trained, metadata)

    def _save_state(self) -> None:
        state = State(
            epoch=self.trainer.epoch,
            request=self.request,
            environment=environment(self.trainer.device),
            metrics=self.metrics,
        )
        save_state(self.folder / "state.safetensors", self.trainer, state)


def file_sizes(trainer: Trainer) -> dict[str, int]:
    """Bytes of the large files of a run by name; the state has a momentum for each weight, maybe an average."""
    weights = sum(tensor.nbytes for tensor in trainer.network.state_dict().values())
    held = 3 if trainer.average else 2
    return {"best.safetensors": weights, "last.safetensors": weights, "state.safetensors": held * weights}


def with_results(models: list[ModelRecord], results: list[ModelResult]) -> list[ModelRecord]:
    return [
        model.model_copy(update={"accuracy": result.accuracy, "loss": result.loss})
        for model, result in zip(models, results, strict=True)
    ]
