"""What the user asked of a run: the state of the run stores it, and `--resume` can change it.

`run` makes a Request from the arguments of `train`, and `setup` builds what it asks for. This module does not
know networks and data.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ConfigDict, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from cnsn_cli.choices import Precision, StartedFrom
from cnsn_cli.data.origin import Origin
from cnsn_cli.device import choose_device
from cnsn_cli.errors import RecipeError, escaped
from cnsn_cli.exits import Exit, read_exit, read_exits
from cnsn_cli.files.metadata import first_problem
from cnsn_cli.training.arguments import Arguments, Options
from cnsn_cli.training.recipe import Recipe

if TYPE_CHECKING:
    import torch


class Interval(NamedTuple):
    """A number of steps, or of seconds; the other one is infinite."""

    steps: float
    seconds: float

    def is_over(self, steps: int, seconds: float) -> bool:
        return steps >= self.steps or seconds >= self.seconds


def parse_interval(text: str) -> Interval:
    """Parse `500` (steps) or `10m` (minutes). Raises RecipeError."""
    number = text.removesuffix("m")
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise RecipeError(
            f"--save-every {text!r}: give a number of steps such as 500, or minutes such as 10m"
        )
    in_steps = number == text
    return Interval(int(number) if in_steps else math.inf, math.inf if in_steps else 60.0 * int(number))


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Request(Options):
    """The arguments of `train`, with the `device` decided for this machine.

    `precision` and `compiled` are decided before the first step, and stay so when the run is resumed.
    `budgets` are numbers of MACs if the run is a search: then `exits` are its candidates, and each step
    trains some of them.
    """

    arch: str
    exits: tuple[int | str, ...]
    data: str
    recipe: Recipe
    device: str = field()
    precision: Precision | None = field(default=None)
    budgets: tuple[int, ...] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _without_paths(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("drop", mode="before")
    @classmethod
    def _as_number(cls, value: Any) -> Any:
        return read_exit(value).word if isinstance(value, str) else value

    @field_validator("exits", mode="before")
    @classmethod
    def _as_words(cls, value: Any) -> Any:
        if isinstance(value, str) or not isinstance(value, Iterable):
            return value  # no list of exits: pydantic says so
        return tuple(exit.word if isinstance(exit, Exit) else exit for exit in value)

    @field_validator("compiled", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        """Older states hold true or false."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @property
    def origin(self) -> Origin:
        """The data set of the run."""
        test_data = None if self.test_data is None else str(self.test_data)
        return Origin(self.data, self.data_dir, self.image_column, self.label_column, test_data)

    @property
    def submodels(self) -> tuple[Exit, ...]:
        """The sub-models. Raises DetachPointError if their words cannot be read, or have another order."""
        return read_exits(self.exits)

    def interval(self) -> Interval:
        """How often the state is saved. Raises RecipeError if `save_every` is neither steps nor minutes."""
        return parse_interval(self.save_every)

    @property
    def started_from(self) -> StartedFrom | None:
        """Where the first weights came from; None if they were drawn at random."""
        if self.pretrained:
            return "published"
        return "file" if self.init else None

    def with_changes(self, changes: Mapping[str, Any]) -> "Request":
        """This request with other values; keys of its recipe may be among them. Raises RecipeError."""
        settings = {key: value for key, value in changes.items() if key in Recipe.model_fields}
        own = {key: value for key, value in changes.items() if key not in settings}
        return _valid({**_values(self), **own, "recipe": self.recipe.with_changes(settings)})

    def decided(self, precision: Precision, compiled: bool) -> "Request":
        """This request, with what a run has decided."""
        return self.with_changes({"precision": precision, "compiled": "on" if compiled else "off"})

    def flat(self) -> dict[str, Any]:
        """All values by name, with the settings of the recipe in place of the recipe."""
        values = _values(self)
        del values["recipe"]
        return {**values, **self.recipe.model_dump()}


def decide(asked: Arguments, budgets: Sequence[int] = ()) -> Request:
    """The request of a new run on this machine; of a search, if there are `budgets`.

    Raises DeviceError, and RecipeError for values out of range.
    """
    device = choose_device(asked.device)
    decided = {
        "budgets": tuple(budgets),
        "arch": asked.arch if isinstance(asked.arch, str) else asked.arch.text,
        "device": device.type,
        "compiled": "off" if asked.compiled == "auto" and not _may_compile(asked, device) else asked.compiled,
    }
    return _valid({**_values(asked), **decided})


def _may_compile(asked: Arguments, device: "torch.device") -> bool:
    """Whether a run may compile that does not ask for it: what compiled code adds up first can change."""
    return device.type == "cuda" and not asked.deterministic


def _values(of: Options) -> dict[str, Any]:
    """The values of a request by name."""
    return {part.name: getattr(of, part.name, part.default) for part in fields(Request)}


def _valid(values: dict[str, Any]) -> Request:
    for name, value in values.items():
        if isinstance(value, str | Path) and escaped(str(value)) != str(value):
            raise RecipeError(
                f"--{name.replace('_', '-')} '{escaped(str(value))}' is no UTF-8, and no file can record it: "
                "rename it, or name a link to it"
            )
    try:
        return Request(**values)
    except ValidationError as error:
        raise RecipeError(f"this run: {first_problem(error)}") from error
