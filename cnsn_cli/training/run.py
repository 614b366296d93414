"""A training run in a folder: from names of an architecture and a data set to files on the disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cnsn_cli import distributed
from cnsn_cli.backbones import registry
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.choices import Precision
from cnsn_cli.data.datasets import Dataset
from cnsn_cli.device import choose_device, default_precision
from cnsn_cli.errors import DataError, TrainingError
from cnsn_cli.evaluation.accuracy import evaluate
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import ModelRecord
from cnsn_cli.network.memory_format import place
from cnsn_cli.training.metrics import Epoch, Step
from cnsn_cli.training.plot import draw
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.recorder import Recorder, with_results
from cnsn_cli.training.request import Prepared, Request, prepare
from cnsn_cli.training.resume_state import STATE, differences, environment, read_state, restore
from cnsn_cli.training.run_folder import PLOT, locked, refuse_existing
from cnsn_cli.training.signals import Stopped, listening

# What a run cannot change on its way: the shape of the network, and where steps and images stand.
FIXED = (
    "arch", "exits", "drop", "freeze_base", "init", "pretrained", "image_size", "in_channels", "skip_bad",
    "bn", "step_down", "ema", "batch_size", "val_split",
)  # fmt: skip


@dataclass(frozen=True)
class Started:
    """All is ready: what will be trained, on how many images, and which images choose the best epoch.

    `skipped` says of each image that was left out what is wrong with it. `drawn` are weights of the
    classifier that start at random, because those that were given know another number of classes.
    """

    train_images: int
    held_out_images: int
    steps_per_epoch: int
    steps_done: int
    selection: Literal["test", "validation"]
    device: torch.device
    skipped: tuple[str, ...]
    drawn: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the best epoch, and how every model of it does on the test images."""

    folder: Path
    best_epoch: int
    selection: Literal["test", "validation"]
    models: list[ModelRecord]


Watch = Callable[[Started | Step | Epoch], None]


def train(
    arch: str | Architecture,
    exits: tuple[int, ...],
    data: str,
    recipe: Recipe,
    out: str | Path,
    *,
    drop: int | None = None,
    freeze_base: str | Path | None = None,
    init: str | Path | None = None,
    pretrained: bool = False,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    in_channels: int = 3,
    classes: int | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    compiled: bool | None = None,
    deterministic: bool = False,
    save_every: str = "10m",
    force: bool = False,
    skip_bad: bool = False,
    watch: Watch = lambda event: None,
) -> Run:
    """Train a network and write the run folder `out`; `watch` is told of every event.

    With `drop` in place of `exits`, the sub-model at that detach point is trained alone. `freeze_base` names
    a file whose base-model gets sub-models, and stays as it is. A network starts with the weights in the
    safetensors file `init`, or with those that it was published with if `pretrained`. With `skip_bad`,
    images that cannot be read are left out. On CUDA `precision` is bf16 and the forward pass `compiled` where
    nothing else is asked for, and `deterministic` makes results repeatable there. The state is saved after
    every epoch and after every `save_every` steps (`500`) or minutes (`10m`). Raises a CnsnError, and Stopped
    after Ctrl-C or SIGTERM; what was written is then whole and stays.
    """
    chosen = choose_device(device)
    request = Request(
        arch=arch.text if isinstance(arch, Architecture) else arch,
        exits=exits,
        drop=drop,
        freeze_base=None if freeze_base is None else str(freeze_base),
        init=None if init is None else str(init),
        pretrained=pretrained,
        data=data,
        data_dir=str(data_dir),
        image_size=image_size,
        in_channels=in_channels,
        skip_bad=skip_bad,
        device=chosen.type,
        precision=precision or default_precision(chosen),
        compiled=chosen.type == "cuda" if compiled is None else compiled,
        deterministic=deterministic,
        save_every=save_every,
        recipe=recipe,
    )
    with distributed.joined():
        return _start(request, arch, Path(out), force, classes, watch)


def _start(
    request: Request,
    arch: str | Architecture,
    folder: Path,
    force: bool,
    classes: int | None,
    watch: Watch,
) -> Run:
    refuse_existing(folder, force)
    request.interval()
    architecture = registry.find(arch)
    prepared = prepare(request, architecture)
    dataset = prepared.dataset
    if classes not in (None, dataset.task.num_classes):
        raise DataError(
            f"{request.data} has {dataset.task.num_classes} classes, not {classes}: leave out --classes"
        )
    with locked(folder):
        refuse_existing(folder, force)  # once more, now that nobody else can fill it
        return _run(Recorder(folder, prepared.trainer, request, architecture), prepared, watch)


def resume(
    folder: str | Path,
    changes: Mapping[str, Any] | None = None,
    override: bool = False,
    watch: Watch = lambda event: None,
) -> Run:
    """Go on with the run in `folder` where it was saved, to the weights of a run that was not stopped.

    They are the same bit for bit on the same device, with the same versions and threads. `changes` are
    parameters of `train` and settings of its recipe. Raises TrainingError with a list of what differs, unless
    `override` accepts it, and CheckpointError where there is no such run.
    """
    folder = Path(folder)
    read_state(folder / STATE)  # there must be a run, before its folder is locked
    with distributed.joined(), locked(folder):
        state = read_state(folder / STATE)
        request = state.request.with_changes(changes or {})
        device = choose_device(request.device)
        request = request.with_changes({"device": device.type})  # one that was asked for may be `auto`
        here = environment(device)
        _check_differences(folder, state.request, request, differences(state.environment, here), override)
        arch = registry.find(request.arch)
        prepared = prepare(request, arch, resumed=True)
        restore(folder / STATE, prepared.trainer, state)
        return _run(Recorder(folder, prepared.trainer, request, arch, state), prepared, watch)


def _check_differences(folder: Path, old: Request, new: Request, elsewhere: str, override: bool) -> None:
    before, after = ({**request.flat(), "save_every": None} for request in (old, new))
    if fixed := differences(*({key: flat[key] for key in FIXED} for flat in (before, after))):
        raise TrainingError(f"{folder} cannot go on with {fixed}: start another run with --out")
    changed = ", ".join(filter(None, (differences(before, after), elsewhere)))
    if changed and not override:
        raise TrainingError(
            f"{folder} was trained otherwise ({changed}): give --override to go on all the same"
        )


def _run(recorder: Recorder, prepared: Prepared, watch: Watch) -> Run:
    trainer, dataset, drawn = prepared
    selection = trainer.recipe.selection
    images = len(trainer.train), len(trainer.held_out)
    done = trainer.epoch * trainer.steps_per_epoch + trainer.step
    watch(Started(*images, trainer.steps_per_epoch, done, selection, trainer.device, dataset.skipped, drawn))
    if trainer.epoch < trainer.recipe.epochs:
        _train(recorder, watch)
    distributed.leave()
    return _finish(recorder, dataset)


def _train(recorder: Recorder, watch: Watch) -> None:
    with listening() as signalled:
        recorder.start()
        for event in recorder.trainer.run():
            recorder.take(event)
            number, due = distributed.largest(signalled() or 0, recorder.is_due())
            if number or due:
                recorder.save_state()
            watch(event)
            if number:
                raise Stopped(number)


def _finish(recorder: Recorder, dataset: Dataset) -> Run:
    """The first process loads the best network, sees how it does on the test images, and draws the run."""
    best, trainer = recorder.best, recorder.trainer
    assert best is not None  # a recipe has at least one epoch
    results = best.results
    if trainer.recipe.selection == "validation" and distributed.is_first():
        network = load(recorder.folder / "best.safetensors")
        results = evaluate(place(network, trainer.device), dataset.test)
    if distributed.is_first():
        draw([recorder.folder], recorder.folder / PLOT)
    models = with_results(recorder.metadata.models, results)
    return Run(recorder.folder, best.epoch, trainer.recipe.selection, models)
