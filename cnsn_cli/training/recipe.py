"""Hyper-parameters, checked: from a preset or a TOML file, and options that override it.

`cnsn train` and Python users load a Recipe here; `setup` and the trainer read it. `recipe_files` reads the
files. This module does not know networks and data.
"""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cnsn_cli.choices import (
    AutoAugment,
    BatchNormMode,
    Crop,
    Distill,
    Flip,
    Mix,
    OptimizerName,
    Schedule,
    Selection,
    StepDown,
    StepDownInit,
)
from cnsn_cli.errors import RecipeError
from cnsn_cli.training.recipe_files import read_settings

Share = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]  # limits, because gradients are multiplied and divided by it


class Recipe(BaseModel):
    """Everything that decides how a network is trained; `cnsn train --help` explains each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    accumulate: int = Field(1, gt=0)
    optimizer: OptimizerName = "sgd"
    lr: float = Field(gt=0)
    pretrained_lr: float = Field(1, gt=0, le=1)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(ge=0)
    decay_norms: bool = True
    clip_norm: float = Field(0, ge=0)
    schedule: Schedule
    milestones: tuple[PositiveInt, ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)
    warmup_epochs: float = Field(0, ge=0)
    label_smoothing: float = Field(0, ge=0, lt=1)
    ema: float = Field(0, ge=0, lt=1)
    crop: Crop = "padded"
    crop_padding: int = Field(0, ge=0, le=256)
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (0.75, 1.3333)
    flip: Flip = "none"
    auto_augment: AutoAugment = "none"
    color_jitter: float = Field(0, ge=0, le=1)
    erase: float = Field(0, ge=0, le=1)
    cutout: int = Field(0, ge=0, le=1024)
    mix: Mix = "none"
    mix_alpha: float = Field(1, gt=0)
    crop_pct: float = Field(1, gt=0, le=1)
    val_split: float = Field(0, ge=0, lt=1)
    bn: BatchNormMode = "private"
    step_down: StepDown = "patch"
    step_down_init: StepDownInit = "random"
    distill: Distill = "none"
    distill_weight: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(2, ge=0.01, le=1000)
    gradient_scale: tuple[Scale, ...] = Field((1.0,), min_length=1)
    final_scale: tuple[Scale, ...] = ()
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum")
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} = {low:g},{high:g}: give the smaller number first")
        if self.ema and self.bn == "shared":
            raise ValueError('ema needs bn = "private", to recompute the statistics of each model')
        return self

    @property
    def selection(self) -> Selection:
        """Which images choose the best epoch."""
        return "validation" if self.val_split else "test"

    @property
    def pads(self) -> bool:
        """Whether images are padded before a random crop of their own size."""
        return self.crop == "padded" and self.crop_padding > 0

    @property
    def photo_augmentation(self) -> tuple[str, ...]:
        """What this recipe does to each photo while it is read, as words such as `crop = resized`."""
        off = {"crop": "padded", "auto_augment": "none", "color_jitter": 0, "erase": 0}
        return tuple(f"{name} = {getattr(self, name)}" for name in off if getattr(self, name) != off[name])

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of step 0, 1, 2, ...

        It rises linearly to `lr` during the warm-up. Then it is multiplied by `gamma` after each milestone
        (schedule `step`), or falls to 0 at the last step (schedule `cosine` or `linear`).
        """
        warmup = self.warmup_epochs * steps_per_epoch
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if self.schedule == "step":
            passed = sum(step >= milestone * steps_per_epoch for milestone in self.milestones)
            return self.lr * ramp * self.gamma**passed
        total = self.epochs * steps_per_epoch
        progress = max(0.0, (step + 1 - warmup) / max(1.0, total - warmup))
        left = 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.lr * ramp * left

    def gradient_scales(self, submodels: int, progress: float) -> list[float]:
        """The weight of each sub-model's gradient in the shared units, at `progress` 0..1 of the training.

        Raises RecipeError if the recipe gives weights for another number of sub-models.
        """
        starts = _one_each("gradient_scale", self.gradient_scale, submodels)
        ends = _one_each("final_scale", self.final_scale or self.gradient_scale, submodels)
        return [start + (end - start) * progress for start, end in zip(starts, ends, strict=True)]

    @property
    def scales_gradients(self) -> bool:
        """Whether a sub-model's gradient has a weight other than 1 at some time."""
        return any(scale != 1 for scale in self.gradient_scale + self.final_scale)

    def with_changes(self, changes: Mapping[str, Any]) -> "Recipe":
        """This recipe with other values. Raises RecipeError for unknown keys and values out of range."""
        return _valid("this recipe", {**self.model_dump(), **changes})

    def unreached_milestones(self) -> tuple[int, ...]:
        """Milestones after the last epoch, which the learning rate never reaches."""
        return tuple(m for m in self.milestones if m >= self.epochs) if self.schedule == "step" else ()

    def to_toml(self) -> str:
        """The recipe as the text of a file that `--recipe` can read."""
        # JSON and TOML write numbers, strings, booleans and lists in the same way.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.model_dump().items())


def load_recipe(
    name: str = "paper", overrides: Mapping[str, Any] | None = None, *, baseline: bool = False
) -> Recipe:
    """Read a preset or a TOML file, and replace some of its values.

    Raises RecipeError for unknown names and keys, and for values out of range.

    Arguments:
        name: A preset (paper, best, fast, quick, finetune, photos) or the path of a TOML file.
        overrides: Values to replace, by key. Default: none.
        baseline: Use the recipe's `baseline_weight_decay`, if it has one, as `weight_decay`. Default: False.
    """
    settings = read_settings(name)
    baseline_decay = settings.pop("baseline_weight_decay", None)
    if baseline and baseline_decay is not None:
        settings["weight_decay"] = baseline_decay
    return _valid(f"recipe {name!r}", {**settings, **(overrides or {})})


def _valid(name: str, settings: dict[str, Any]) -> Recipe:
    try:
        return Recipe(**settings)
    except ValidationError as error:
        raise RecipeError(f"{name}: {_first_problem(error)}") from error


def _one_each(key: str, values: tuple[float, ...], submodels: int) -> tuple[float, ...]:
    if len(values) == 1 or not submodels:  # a baseline is trained with the same recipe
        return values[:1] * submodels
    if len(values) != submodels:
        raise RecipeError(f"{key} has {len(values)} values for {submodels} sub-models: give one, or one each")
    return values


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    if not key:
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}: choose from {', '.join(Recipe.model_fields)}"
    if problem["type"] == "missing":
        return f'{key} is missing: set it, or start with extends = "paper"'
    return f"{key} = {problem['input']!r}: {problem['msg'].lower()}"
