"""The data, the first weights and the trainer that a run needs before its first step.

`run` calls this module, which does not know the run folder; `building` builds the network.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from cnsn_cli import distributed
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.data.datasets import Dataset, load_dataset
from cnsn_cli.data.origin import NAMED
from cnsn_cli.data.split import Split
from cnsn_cli.errors import DataError, ImageSizeError, RecipeError
from cnsn_cli.exits import check_statistics, widths
from cnsn_cli.files.hub import path_of
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.precision import fastest_precision
from cnsn_cli.phases import phase
from cnsn_cli.stages import stage
from cnsn_cli.task import Task
from cnsn_cli.training.building import build_around, build_network, load_base
from cnsn_cli.training.data_record import DataRecord, record_data
from cnsn_cli.training.initial_weights import Start, from_file, from_publisher
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.rehearsal import rehearse
from cnsn_cli.training.request import Request
from cnsn_cli.training.sampling import Sampler
from cnsn_cli.training.trainer import Trainer


class Prepared(NamedTuple):
    """All that a run needs before its first step.

    `drawn` names weights that start at random, although the user gave weights to start from. `record`
    describes the data; only the first process has it.
    """

    trainer: Trainer
    dataset: Dataset
    drawn: tuple[str, ...] = ()
    record: DataRecord | None = None


def prepare(
    request: Request,
    arch: Architecture,
    check: Callable[[DataRecord | None], None] | None = None,
    drawn: tuple[str, ...] = (),
) -> Prepared:
    """Make everything for a run of `arch`. Raises a CnsnError if the run cannot start.

    A resumed run gives a `check` of its data, which runs before its network is built, and the `drawn` of its
    start. The weights of this network come from the state, not from here.
    """
    _check_start(request)
    if request.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    base = load_base(path_of(request.freeze_base), arch) if request.freeze_base else None
    with phase("reading"):
        dataset = _data(request, base)
    if dataset.task.num_classes == 1 and not check:
        (name,) = dataset.task.class_names
        raise DataError(f"{request.data} has a single class, {name!r}: a classifier needs at least two")
    with phase("reading"):
        record = record_data(request, dataset)
    if check:
        check(record)
    dataset = _for_base(dataset, base, request) if base else dataset
    start = None if check else _start(request, arch, dataset)
    fitted, held_out = split_off(dataset, request.recipe)
    fit_on = fitted if request.recipe.step_down_init == "fit" and not check else None
    with _naming_the_picture(dataset), phase("building"):
        network = _network(request, arch, dataset.task, base, start, fit_on)
    network = place(network, torch.device(request.device))
    drawn = start.drawn if start else drawn
    trainer = _trainer(request, network, fitted, held_out, drawn)
    if not distributed.is_first():
        torch.manual_seed(seed_of_process(request.recipe.seed, distributed.rank()))
    return Prepared(trainer, dataset, drawn, record)


def _trainer(
    request: Request, network: Cnsn | Model, fitted: Split, held_out: Split, drawn: tuple[str, ...]
) -> Trainer:
    on_cuda = request.device == "cuda"
    precision = request.precision or fastest_precision(network, torch.device(request.device))
    ways = (precision, request.compiled == "on", request.capture and on_cuda)
    sampler = Sampler(len(request.exits), request.recipe.seed) if request.budgets else None
    with phase("building"):  # torch's optimizers import its compiler, which takes seconds
        trainer = Trainer(network, fitted, held_out, request.recipe, *ways, drawn, sampler)
    if on_cuda and sampler is None:  # the steps of a search differ, so they are neither captured nor compiled
        with phase("compiling"):
            rehearse(trainer, undecided=request.compiled == "auto" and not request.deterministic)
    return trainer


@contextmanager
def _naming_the_picture(dataset: Dataset) -> Iterator[None]:
    """If an architecture cannot take the images, say which picture decided their size."""
    try:
        yield
    except ImageSizeError as error:
        if dataset.sized_by is None:
            raise
        raise ImageSizeError(f"{error}; the first image decided: {dataset.sized_by}") from error


def seed_of_process(seed: int, rank: int) -> int:
    """A seed of 32 bits, because torch reads no more on the CPU; processes differ in dropout."""
    return int(np.random.SeedSequence((seed, 0, rank)).generate_state(1)[0])


def _data(request: Request, base: Model | None) -> Dataset:
    size, channels, crop_pct = request.image_size, request.in_channels, request.recipe.crop_pct
    if base:  # 3 channels and a share of 1 may be the defaults, which nobody asked for
        size = size or base.task.image_size
        channels = base.task.in_channels if channels == 3 else channels
        crop_pct = base.task.crop_pct if crop_pct == 1 else crop_pct
    with distributed.first_ahead():  # it may have to download
        return load_dataset(
            request.data,
            request.data_dir,
            size,
            channels,
            request.skip_bad,
            request.limit_images,
            crop_pct,
            keep=not request.recipe.photo_augmentation,
            **request.origin.columns(),
        )


def _network(
    request: Request,
    arch: Architecture,
    task: Task,
    base: Model | None,
    start: Start | None,
    fit_on: Split | None,
) -> Cnsn | Model:
    exits, recipe = request.submodels, request.recipe
    if base:
        return build_around(base, arch, exits, recipe, fit_on)
    return build_network(arch, exits, task, recipe, request.drop, start, fit_on)


def _check_start(request: Request) -> None:
    given = {"--init": request.init, "--pretrained": request.pretrained, "--freeze-base": request.freeze_base}
    several = [option for option, value in given.items() if value]
    if len(several) > 1:
        raise RecipeError(f"{' and '.join(several)} both say what a network starts with: give one of them")
    check_statistics(request.submodels, request.recipe.bn)
    if not several:
        _check_pretrained(request.recipe)
    if request.data in NAMED and (changes := request.recipe.photo_augmentation):
        raise RecipeError(
            f"{', '.join(changes)} changes photos while they are read from files, and {request.data} is an "
            "array of small images: leave it out, or give --data a folder of images"
        )
    if request.freeze_base and (narrow := widths(request.submodels)):
        raise RecipeError(
            f"--freeze-base and the width @{narrow[0]:g} exclude each other, for the weights of a narrow "
            "sub-model are the base-model's: give detach points alone"
        )


def _check_pretrained(recipe: Recipe) -> None:
    """Raises RecipeError for settings about pretrained weights, in a run that has none."""
    for name, value, plain in (
        ("pretrained_lr", recipe.pretrained_lr, 1),
        ("step_down_init", recipe.step_down_init, "random"),
    ):
        if value != plain:
            raise RecipeError(
                f"{name} = {value} is about pretrained weights, and this run starts at random: give "
                f"--pretrained, --init or --freeze-base, or --{name.replace('_', '-')} {plain}"
            )


def _start(request: Request, arch: Architecture, dataset: Dataset) -> Start | None:
    if request.pretrained:
        with distributed.first_ahead():  # it may have to download
            return from_publisher(arch, dataset.task)
    if not request.init:
        return None
    path = path_of(request.init)
    with stage(f"opening {path.name}"):
        return from_file(path)


def _for_base(dataset: Dataset, base: Model, request: Request) -> Dataset:
    """The data set, normalised as for `base`. Raises DataError if its images or classes differ."""
    for words, found, wanted in (
        ("classes", dataset.task.class_names, base.task.class_names),
        ("pixels a side", dataset.task.image_size, base.task.image_size),
        ("channels", dataset.task.in_channels, base.task.in_channels),
        ("crop_pct", dataset.task.crop_pct, base.task.crop_pct),
    ):
        if found != wanted:
            raise DataError(
                f"{request.data} has {words} {found}, {request.freeze_base} was trained on {wanted}"
            )
    return replace(dataset, task=base.task)


def split_off(dataset: Dataset, recipe: Recipe) -> tuple[Split, Split]:
    """The images to train on, and the images that choose the best epoch.

    The latter are the test images, or with a `val_split` a part of the training images. Raises RecipeError if
    the training images cannot be split so.
    """
    if recipe.selection == "test":
        return dataset.train, dataset.test
    from sklearn.model_selection import train_test_split

    labels = dataset.train.labels
    _check_val_split(labels, dataset.task.class_names, recipe.val_split)
    fitted, held_out = train_test_split(
        torch.arange(len(labels)), test_size=recipe.val_split, stratify=labels, random_state=recipe.seed
    )
    return dataset.train.take(fitted), dataset.train.take(held_out)


def _check_val_split(labels: torch.Tensor, class_names: tuple[str, ...], share: float) -> None:
    """Raises RecipeError unless both parts can have an image of each class."""
    images, classes = len(labels), len(class_names)
    counts = torch.bincount(labels, minlength=classes).tolist()
    single = [name for name, count in zip(class_names, counts, strict=True) if count == 1]
    if single:
        more = f" (and {len(single) - 1} more)" if single[1:] else ""
        raise RecipeError(
            f"class {single[0]!r}{more} has a single training image, and val_split = {share} holds out "
            "images of each class: add images, or give --val-split 0"
        )
    held_out = math.ceil(images * share)
    for count, words in ((held_out, "holds out"), (images - held_out, "leaves for training")):
        if count < classes:
            least = math.ceil(1e4 * classes / images) / 1e4
            remedy = f"give {least:g} to {1 - least:g}" if least <= 0.5 else "add images"
            raise RecipeError(
                f"val_split = {share} of {images:,} images {words} {count:,}, fewer than the {classes} "
                f"classes: {remedy}, or --val-split 0"
            )
