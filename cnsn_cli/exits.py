"""The words for sub-models: which part of the base-model one keeps.

    7        without the first 7 conv layers
    @0.5     with the leading half of the channels
    7@0.5    both

Commands, training and files read these words here, and ask which tensors are kept. This module knows no
architecture: `detach_points` says where a network may be cut, and `narrowing` which widths it may have.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from cnsn_cli.choices import BatchNormMode
from cnsn_cli.errors import DetachPointError

DIGITS = 6  # significant digits of a width: as many as `:g` shows


class Exit(NamedTuple):
    """A sub-model: without the first `drops` conv layers, with the leading share `width` of the channels."""

    drops: int
    width: float = 1.0

    def __str__(self) -> str:
        return str(self.drops) if self.width == 1 else f"{self.drops or ''}@{self.width:g}"

    @property
    def word(self) -> int | str:
        """The exit as files and programs have it: a number if it is cut in depth alone."""
        return self.drops if self.width == 1 else str(self)

    @property
    def kind(self) -> str:
        """What is cut: `depth`, `width`, `both`, or nothing in the `base`."""
        if self.width == 1:
            return "depth" if self.drops else "base"
        return "both" if self.drops else "width"


def read_exit(word: int | str) -> Exit:
    """Read `7`, `@0.5` or `7@0.5`. Raises DetachPointError."""
    found = re.fullmatch(r"\s*(-?\d{1,9})?(?:@(.+?))?\s*", str(word), re.ASCII)
    drops, width = found.groups() if found else (None, None)
    if drops is None and width is None:
        raise DetachPointError(f"{word!r} is no sub-model: {_legal()}")
    share = 1.0 if width is None else _share(str(word), width)
    if width is not None and drops is not None and int(drops) < 1:
        raise DetachPointError(
            f"{word!r} drops no conv layer: write @{width}, or a detach point before the @"
        )
    return Exit(int(drops or 0), share)


def _share(word: str, width: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+([eE]-?\d+)?", width, re.ASCII):
        raise DetachPointError(f"{word!r} is no sub-model: {_legal()}")
    share = float(f"{float(width):.{DIGITS}g}")
    if not 0 < share < 1:
        raise DetachPointError(
            f"{word!r} has no width between 0 and 1, a share of the channels: write @0.5 for half"
        )
    return share


def _legal() -> str:
    return "write 7 (without the first 7 convs), @0.5 (half the channels) or 7@0.5 (both)"


def read_exits(words: Iterable[int | str | Exit]) -> tuple[Exit, ...]:
    """Read a list of sub-models.

    Raises DetachPointError unless widths fall, and depths ascend within one width, without repeats.
    """
    exits = tuple(word if isinstance(word, Exit) else read_exit(word) for word in words)
    tidy = sorted(set(exits), key=lambda exit: (-exit.width, exit.drops))
    if list(exits) != tidy:
        rule = "ascend" if all(exit.width == 1 for exit in exits) else "fall in width, ascend in depth,"
        raise DetachPointError(
            f"exits must {rule} without repeats, not {written(exits)}: use {written(tidy)}"
        )
    return exits


def is_kept(name: str, first_unit: int) -> bool:
    """Whether a sub-model that begins at unit `first_unit` keeps the network's tensor or layer `name`."""
    part, number, *_ = [*name.split("."), ""]
    return part == "head" or (part == "units" and number.isdecimal() and int(number) >= first_unit)


def written(exits: Iterable[Exit]) -> str:
    """The list as users type it: `2,7,@0.5`."""
    return ",".join(map(str, exits))


def widths(exits: Iterable[Exit]) -> tuple[float, ...]:
    """The widths below 1, in the order of `exits`."""
    return tuple(dict.fromkeys(exit.width for exit in exits if exit.width != 1))


def check_statistics(exits: Iterable[Exit], bn: BatchNormMode) -> None:
    """Raises DetachPointError if models of several widths were to share BN statistics."""
    if bn == "shared" and (narrow := widths(exits)):
        raise DetachPointError(
            f'bn = "shared" and the width @{narrow[0]:g} exclude each other, for statistics of another width '
            'fit no model: use "private", or give detach points alone'
        )
