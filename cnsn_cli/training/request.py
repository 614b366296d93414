"""What was asked of `cnsn train`, and all that it needs before its first step."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnsn_cli import distributed
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.data.datasets import Dataset, load_dataset
from cnsn_cli.data.split import Split
from cnsn_cli.errors import DataError, RecipeError
from cnsn_cli.files.metadata import Count, first_problem
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.model import Model
from cnsn_cli.task import LARGEST_IMAGE
from cnsn_cli.training.initial_weights import Start, from_file, from_publisher
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.setup import build_around, build_network, load_base
from cnsn_cli.training.trainer import Trainer


class Interval(NamedTuple):
    """So many steps, or seconds."""

    steps: float
    seconds: float

    def is_over(self, steps: int, seconds: float) -> bool:
        return steps >= self.steps or seconds >= self.seconds


def parse_interval(text: str) -> Interval:
    """`500` steps, `10m` minutes."""
    number = text.removesuffix("m")
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise RecipeError(
            f"--save-every {text!r}: give a number of steps such as 500, or minutes such as 10m"
        )
    in_steps = number == text
    return Interval(int(number) if in_steps else math.inf, math.inf if in_steps else 60.0 * int(number))


class Request(BaseModel):
    """What was asked of `cnsn train`, with all defaults filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str
    exits: tuple[Count, ...]
    drop: Count | None
    freeze_base: str | None
    init: str | None = None  # this and `pretrained` came later: there are states without
    pretrained: bool = False
    data: str
    data_dir: str
    image_size: int | None = Field(ge=1, le=LARGEST_IMAGE)
    in_channels: int
    skip_bad: bool
    device: str
    precision: Literal["fp32", "bf16"]
    compiled: bool
    deterministic: bool
    save_every: str
    recipe: Recipe

    def interval(self) -> Interval:
        """How often the state is saved. Raises RecipeError for what is neither steps nor minutes."""
        return parse_interval(self.save_every)

    @property
    def started_from(self) -> Literal["file", "published"] | None:
        """Where the first weights came from, if they were not drawn."""
        if self.pretrained:
            return "published"
        return "file" if self.init else None

    def with_changes(self, changes: Mapping[str, Any]) -> "Request":
        """The same with other values, those of the recipe under their own names. Raises RecipeError."""
        settings = {key: value for key, value in changes.items() if key in Recipe.model_fields}
        own = {key: value for key, value in changes.items() if key not in settings}
        try:
            return Request(**{**dict(self), **own, "recipe": self.recipe.with_changes(settings)})
        except ValidationError as error:
            raise RecipeError(f"this run: {first_problem(error)}") from error

    def flat(self) -> dict[str, Any]:
        """Everything by name, the recipe's settings among the rest."""
        return {**self.model_dump(exclude={"recipe"}), **self.recipe.model_dump()}


class Prepared(NamedTuple):
    """All that a run needs before its first step; weights `drawn` although others were asked for."""

    trainer: Trainer
    dataset: Dataset
    drawn: tuple[str, ...] = ()


def prepare(request: Request, arch: Architecture, resumed: bool = False) -> Prepared:
    """Everything for a run of `arch`, which if `resumed` gets its weights elsewhere.

    Raises a CnsnError where it cannot start.
    """
    _check_start(request)
    if request.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    exits, recipe = request.exits, request.recipe
    base = load_base(Path(request.freeze_base), request.arch) if request.freeze_base else None
    with distributed.first_ahead():  # it may have to download
        dataset = load_dataset(
            request.data, request.data_dir, request.image_size, request.in_channels, request.skip_bad
        )
    if base:
        dataset = _for_base(dataset, base, request)
    start = None if resumed else _start(request, arch, dataset)
    fitted, held_out = split_off(dataset, recipe)
    network = (
        build_around(base, arch, exits, recipe)
        if base
        else build_network(arch, exits, dataset.task, recipe, request.drop, start)
    )
    network = place(network, torch.device(request.device))
    trainer = Trainer(network, fitted, held_out, recipe, request.precision, request.compiled)
    if not distributed.is_first():
        torch.manual_seed(recipe.seed + 2**32 * distributed.rank())  # dropout of its own
    return Prepared(trainer, dataset, start.drawn if start else ())


def _check_start(request: Request) -> None:
    given = {"--init": request.init, "--pretrained": request.pretrained, "--freeze-base": request.freeze_base}
    several = [option for option, value in given.items() if value]
    if len(several) > 1:
        raise RecipeError(f"{' and '.join(several)} both say what a network starts with: give one of them")


def _start(request: Request, arch: Architecture, dataset: Dataset) -> Start | None:
    if request.pretrained:
        with distributed.first_ahead():  # it may have to download
            return from_publisher(arch, dataset.task)
    return from_file(Path(request.init)) if request.init else None


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
