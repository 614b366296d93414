"""Pictures of runs: accuracy against MACs, and accuracy over the epochs.

`run` draws every finished run; Python users and `cnsn plot` draw several runs into one picture. Colour-blind
people can tell the colours apart (Okabe & Ito, https://jfly.uni-koeln.de/color/), and markers and dashes
differ as well. This module reads files; it does not know networks, and does not import torch.
"""

import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from cnsn_cli.errors import CheckpointError, OutputError, escaped
from cnsn_cli.files.metadata import Metadata, ModelRecord, read_metadata
from cnsn_cli.files.paths import Paths, listed
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.files.writer import check_output, replacing
from cnsn_cli.training.metrics import Line, parse_lines
from cnsn_cli.training.run_folder import BEST, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The six of Okabe & Ito, then darker and lighter ones between them.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
    "#882255", "#999933", "#332288", "#44AA99", "#7A4B00", "#FF9DA7",
)  # fmt: skip
BLACK, GREY = "#000000", "#767676"
MARKERS = "os^DvPX<>*hpd8"  # of depths
FILLS = ("full", "left", "bottom", "right", "top")  # of widths
# Pairs of numbers are the lengths of dashes and of gaps.
DASHES: tuple[Any, ...] = (
    "-", "--", ":", "-.", *((0, lengths) for lengths in (
        (8, 2), (1, 4), (8, 2, 1, 2, 1, 2), (3, 1, 1, 1, 1, 1), (10, 4), (6, 1, 2, 1), (2, 4), (12, 2, 1, 2),
    )),
)  # fmt: skip
LEVEL: Any = (0, (4, 3))  # the dashes of the horizontal line of a baseline
MOST = 101  # per cent, the top of an axis; leaves room for markers at 100
FORMATS = (".png", ".svg")
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#E5E5E5",
    "svg.hashsalt": "cnsn",  # so that equal runs give equal files
    "text.parse_math": False,
}


class Story(NamedTuple):
    """A run: its name in the picture, the metadata of its best network, and its epochs; [] if unknown."""

    name: str
    metadata: Metadata
    epochs: list[Line]

    @property
    def is_baseline(self) -> bool:
        """Trained without sub-models."""
        return self.metadata.kind == "network" and not self.metadata.exits


def plot(runs: Paths, output: str | Path, force: bool = False) -> None:
    """Draw accuracy against MACs of all models, and accuracy over the epochs, into one picture.

    Arguments:
        runs: One or several run folders; or checkpoints, which have no training curves.
        output: The file to write; it ends in `.png` or `.svg`.
        force: Replace `output` if it exists.

    Raises CheckpointError if a path is neither a run folder nor a checkpoint, or has no accuracies,
    OutputError if `output` cannot be written, ArgumentError if there is no run.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    paths, output = listed(runs, "runs"), Path(output)
    if output.suffix not in FORMATS:
        raise OutputError(f"{output} is not the name of a picture: end it in {' or '.join(FORMATS)}")
    check_output(output, force)
    stories = [read_story(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib warns about letters that the font lacks
        panels = 2 if any(story.epochs for story in stories) else 1
        figure = Figure(figsize=(5.2 * panels, 4.4), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        _draw_trade_off(axes[0], stories)
        if panels > 1:
            _draw_curves(axes[1], stories)
        with replacing(output, force) as file:
            date = {"Date": None} if output.suffix == ".svg" else {}
            figure.savefig(file, format=output.suffix[1:], dpi=150, metadata=date)


def read_story(path: Path, name: str) -> Story:
    """The story of a run folder, or of a checkpoint. Raises CheckpointError."""
    file = path / BEST if path.is_dir() else path
    metadata = read_metadata(file, read_header(file))
    if any(model.accuracy is None for model in metadata.models):
        raise CheckpointError(f"{file} has no accuracies to draw: none were measured for its weights")
    if not path.is_dir():
        return Story(name, metadata, [])
    names = [model.name for model in metadata.models]
    return Story(name, metadata, _read_epochs(path / METRICS, names))


def _read_epochs(path: Path, names: list[str]) -> list[Line]:
    try:
        lines = parse_lines(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"cannot read epochs from {path}: {reason}") from error
    parts = [part for line in lines for part in (line.train, line.results)]
    if any([result.name for result in part] != names for part in parts):
        raise CheckpointError(f"{path} has other models than {BEST}, which has {', '.join(names)}")
    return lines


def _names(paths: Sequence[Path]) -> list[str]:
    """The name of each folder, and folder/name of each file; whole paths if two names are equal."""
    # The text of an Address has the names that people know; its copy in the cache has digests for names.
    ends = [Path(str(path)).resolve().parts[-1 if path.is_dir() else -2 :] for path in paths]
    unique = len(set(ends)) == len(ends)
    return [escaped("/".join(end) if unique else str(path)) for end, path in zip(ends, paths, strict=True)]


def _draw_trade_off(axes: "Axes", stories: list[Story]) -> None:
    """Draw a point for each model and a line for each width of a run; a baseline also gets a horizontal line.

    Names are in the legend: beside their points they would overlap if models are close to each other.
    """
    keys = {}
    for number, story in enumerate(stories):
        points = [(model.macs / 1e6, 100 * (model.accuracy or 0.0)) for model in story.metadata.models]
        line = _colour(stories, number, 0) if stories[1:] else GREY
        for _, same in groupby(zip(story.metadata.models, points, strict=True), lambda pair: pair[0].width):
            axes.plot(*zip(*(point for _, point in same), strict=True), color=line, linewidth=1.2, zorder=1)
        for model, point in zip(story.metadata.models, points, strict=True):
            rank = _rank(stories, model)
            look: dict[str, Any] = {**_marker(stories, model), "linestyle": ""}
            colour = _colour(stories, number, rank)
            axes.plot(*point, markersize=8, color=colour, **look)
            keys[rank] = _key(_name(model), GREY if stories[1:] else colour, **look)
        if story.is_baseline:
            axes.axhline(points[0][1], color=BLACK, linestyle=LEVEL, linewidth=1, zorder=0)
    axes.margins(0.2)
    axes.set_xlim(left=0)
    axes.set_ylim(top=min(axes.get_ylim()[1], MOST))
    axes.set_xlabel("million MACs for one image")
    axes.set_ylabel(f"accuracy on the {_images(stories)} images, %")
    axes.set_title("What each model costs, and what it is worth", loc="left")
    runs = [_run_key(stories, number) for number in range(len(stories))] if stories[1:] else []
    axes.legend(handles=[*runs, *(keys[rank] for rank in sorted(keys))])


def _draw_curves(axes: "Axes", stories: list[Story]) -> None:
    """Draw a line for each model over the epochs; for a single run also the training accuracy, faintly."""
    from matplotlib.ticker import MaxNLocator

    keys = {}
    for number, story in enumerate(stories):
        epochs = [line.epoch for line in story.epochs]
        for index, model in enumerate(story.metadata.models if epochs else []):
            rank = _rank(stories, model)
            dash: Any = DASHES[rank % len(DASHES)]
            look: dict[str, Any] = {"color": _colour(stories, number, rank), "linestyle": dash}
            held_out = [100 * line.results[index].accuracy for line in story.epochs]
            axes.plot(epochs, held_out, linewidth=1.8, marker="." if len(epochs) < 30 else "", **look)
            if not stories[1:]:
                seen = [100 * line.train[index].accuracy for line in story.epochs]
                axes.plot(epochs, seen, linewidth=0.9, alpha=0.5, **look)
            keys[rank] = _key(_name(model), GREY if stories[1:] else look["color"], linestyle=dash)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # a single epoch has no 0.98
    axes.set_ylim(top=min(axes.get_ylim()[1], MOST))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"accuracy on the {_images(stories)} images, %")
    axes.set_title("Training" if stories[1:] else "Training (faint: on the training images)", loc="left")
    axes.legend(handles=[keys[rank] for rank in sorted(keys)])


def _rank(stories: list[Story], model: ModelRecord) -> int:
    """The place of a model in the order of sub-models, so that equal models look alike in all runs."""
    exits = {m.exit for story in stories for m in story.metadata.models}
    return sorted(exits, key=lambda exit: (-exit.width, exit.drops)).index(model.exit)


def _marker(stories: list[Story], model: ModelRecord) -> dict[str, Any]:
    """The shape tells depths apart, the filling tells widths apart."""
    models = [m for story in stories for m in story.metadata.models]
    depth = sorted({m.drops for m in models}).index(model.drops)
    width = sorted({-m.width for m in models}).index(-model.width)
    fill = {"fillstyle": FILLS[width % len(FILLS)], "markerfacecoloralt": "white"}
    return {"marker": MARKERS[depth % len(MARKERS)], **fill}


def _colour(stories: list[Story], number: int, rank: int) -> str:
    """The colour of run `number` if there are several runs, else of the model with this rank."""
    if stories[number].is_baseline:
        return BLACK
    return COLOURS[(number if stories[1:] else rank) % len(COLOURS)]


def _name(model: ModelRecord) -> str:
    parts = [f"k={model.drops}"] * (model.drops > 0) + [f"@{model.width:g}"] * (model.width != 1)
    return " ".join(parts) or "base"


def _run_key(stories: list[Story], number: int) -> Any:
    story = stories[number]
    label, dash = (f"{story.name} (baseline)", LEVEL) if story.is_baseline else (story.name, "-")
    return _key(label, _colour(stories, number, 0), linestyle=dash)


def _key(label: str, colour: str, **look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=2, label=label, **look)


def _images(stories: list[Story]) -> str:
    """Which images the accuracies were measured on: test, validation, or held-out if runs differ."""
    kinds = {story.metadata.selection.images for story in stories if story.metadata.selection}
    return kinds.pop() if len(kinds) == 1 else "held-out"
