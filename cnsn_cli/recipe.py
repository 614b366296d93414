"""Hyper-parameters: presets in TOML, files of the user's own, and flags that override both."""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from cnsn_cli.errors import RecipeError

PRESETS_FOLDER = Path(__file__).parent / "recipes"


class Recipe(BaseModel):
    """Everything that decides how a network is trained, with the units that the words imply.

    `milestones` and `warmup_epochs` count epochs; `val_split` is the share of the training images held
    out to select the best epoch, and 0 selects on the test images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    lr: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    schedule: Literal["step", "one-cycle"]
    milestones: tuple[PositiveInt, ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)
    warmup_epochs: float = Field(0, ge=0)
    crop_padding: int = Field(0, ge=0, le=256)
    flip: bool = False
    val_split: float = Field(0.0, ge=0, lt=1)
    bn: Literal["private", "shared"] = "private"
    seed: int = Field(0, ge=0, lt=2**32)

    @property
    def selection(self) -> Literal["test", "validation"]:
        """Which images choose the best epoch."""
        return "validation" if self.val_split else "test"

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of step 0, 1, 2, ...

        `step`: linear warm-up, then `gamma` times less after each milestone. `one-cycle`: linear warm-up
        to `lr`, then a cosine down to 0.
        """
        warmup = self.warmup_epochs * steps_per_epoch
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if self.schedule == "step":
            passed = sum(step >= milestone * steps_per_epoch for milestone in self.milestones)
            return self.lr * ramp * self.gamma**passed
        total = self.epochs * steps_per_epoch
        progress = max(0.0, (step + 1 - warmup) / max(1.0, total - warmup))
        return self.lr * ramp * (1 + math.cos(math.pi * progress)) / 2

    def unreached_milestones(self) -> tuple[int, ...]:
        """Milestones that lie behind the last epoch, so that the learning rate never falls there."""
        return tuple(m for m in self.milestones if m >= self.epochs) if self.schedule == "step" else ()

    def to_toml(self) -> str:
        """The recipe as a file that `--recipe` reads back."""
        # Numbers, strings, booleans and lists are written alike in JSON and TOML.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.model_dump().items())


def presets() -> list[str]:
    """The names of the recipes that come with cnsn."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def load_recipe(
    name: str = "paper", overrides: Mapping[str, Any] | None = None, *, baseline: bool = False
) -> Recipe:
    """Read a preset or a TOML file, and lay `overrides` over it.

    With `baseline`, `baseline_weight_decay` of the recipe, where it has one, stands for `weight_decay`.
    Raises RecipeError for unknown names, keys and values out of range.
    """
    settings = _read(name, seen=())
    baseline_decay = settings.pop("baseline_weight_decay", None)
    if baseline and baseline_decay is not None:
        settings["weight_decay"] = baseline_decay
    try:
        return Recipe(**{**settings, **(overrides or {})})
    except ValidationError as error:
        raise RecipeError(f"recipe {name!r}: {_first_problem(error)}") from error


def _read(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a recipe, laid over those that it extends."""
    if name in seen:
        raise RecipeError(f"recipes extend each other in a circle: {' -> '.join((*seen, name))}")
    path = PRESETS_FOLDER / f"{name}.toml" if name in presets() else Path(name)
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe {name!r}: choose {', '.join(presets())} or a TOML file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"cannot read recipe {name!r}: {error}") from error
    parent = settings.pop("extends", None)
    if parent is None:
        return settings
    if not isinstance(parent, str):
        raise RecipeError(f"recipe {name!r}: extends takes the name of one recipe, not {parent!r}")
    sibling = path.parent / parent
    inherited = _read(str(sibling) if sibling.is_file() else parent, (*seen, name))
    if "weight_decay" in settings:
        inherited.pop("baseline_weight_decay", None)
    return {**inherited, **settings}


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}: choose from {', '.join(Recipe.model_fields)}"
    if problem["type"] == "missing":
        return f'{key} is missing: set it, or start with extends = "paper"'
    return f"{key} = {problem['input']!r}: {problem['msg'].lower()}"
