"""A picture of which classes models take for which. `cnsn eval --confusion -o` draws it."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnsn_cli.errors import OutputError, escaped
from cnsn_cli.files.writer import check_output, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
MOST_NAMED = 30  # classes; more names would overlap
MOST_WRITTEN = 12  # classes; more counts would not fit into their fields


def check_picture(output: Path, force: bool) -> None:
    """Raises OutputError if `output` is not the name of a picture, or cannot be written."""
    if output.suffix not in FORMATS:
        raise OutputError(f"{output} is not the name of a picture: end it in {' or '.join(FORMATS)}")
    check_output(output, force)


def draw_confusions(
    confusions: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], output: Path, force: bool
) -> None:
    """Draw the table of each model, name -> counts, side by side. Raises OutputError."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "cnsn", "text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib warns about letters that the font lacks
        figure = Figure(figsize=(5 * len(confusions), 4.6), layout="constrained")
        places = figure.subplots(1, len(confusions), squeeze=False)[0]
        for axes, (name, counts) in zip(places, confusions.items(), strict=True):
            _draw_one(axes, name, counts, [escaped(name) for name in classes])
        with replacing(output, force) as file:
            date = {"Date": None} if output.suffix == ".svg" else {}
            figure.savefig(file, format=output.suffix[1:], dpi=150, metadata=date)


def _draw_one(axes: "Axes", name: str, counts: Sequence[Sequence[int]], classes: list[str]) -> None:
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= MOST_NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    for i, row in enumerate(counts if len(classes) <= MOST_WRITTEN else ()):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, f"{count:,}", ha="center", va="center", color=colour)
    axes.set_title(name, loc="left")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
