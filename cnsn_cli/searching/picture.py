"""The picture of a search: accuracy against MACs, all candidates, and the best one of each budget.

`search` draws it. A colour is a width, the number beside a point is its depth, rings mark the best, dotted
lines are budgets, and the grey steps are the frontier: there is no candidate to their upper left.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from cnsn_cli.files.writer import replacing
from cnsn_cli.training.plot import COLOURS, GREY, MARKERS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cnsn_cli.searching.ranking import Found, Result


def draw(found: "Found", output: Path) -> None:
    """Write the picture as a .png. Raises OutputError if it cannot be written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib warns about letters that the font lacks
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes = figure.subplots()
        _draw_frontier(axes, found.results)
        _draw_points(axes, found.results)
        _mark_best(axes, found)
        axes.set_xlabel("MACs for one image (millions)")
        axes.set_ylabel(f"accuracy on {found.images:,} {found.selection} images (%)")
        axes.legend(loc="lower right", frameon=False)
        with replacing(output, True) as file:
            figure.savefig(file, format="png", dpi=150)


def _point(result: "Result") -> tuple[float, float]:
    return result.macs / 1e6, 100 * result.accuracy


def _draw_points(axes: "Axes", results: list["Result"]) -> None:
    widths = sorted({result.width for result in results}, reverse=True)
    for number, width in enumerate(widths):
        own = [result for result in results if result.width == width]
        xs, ys = zip(*map(_point, own), strict=True)
        label = "all channels" if width == 1 else f"width {width:g}"
        axes.plot(
            xs,
            ys,
            MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            label=label,
            zorder=3,
        )
        for result in own:
            text = f"{result.drops}" if result.drops else result.name
            axes.annotate(text, _point(result), (4, 4), textcoords="offset points", fontsize=7)


def _draw_frontier(axes: "Axes", results: list["Result"]) -> None:
    best: list[tuple[float, float]] = []
    for x, y in sorted(map(_point, results)):
        if not best or y > best[-1][1]:
            best.append((x, y))
    xs, ys = zip(*best, strict=True)
    axes.plot(xs, ys, color=GREY, drawstyle="steps-post", linewidth=1, label="frontier")


def _mark_best(axes: "Axes", found: "Found") -> None:
    by_name = {result.name: result for result in found.results}
    for number, pick in enumerate(found.picks):
        axes.axvline(pick.budget / 1e6, color=GREY, linestyle=":", linewidth=1, zorder=1)
        x, y = _point(by_name[pick.best])
        label = "best of a budget" if number == 0 else None
        axes.plot([x], [y], "o", markersize=13, fillstyle="none", color="#000000", label=label, zorder=4)
