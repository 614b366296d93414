"""What commands print: tables for people, JSON for programs, and no control characters from files.

Every command prints here. This module does not know where the values come from.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cnsn_cli.errors import escaped

if TYPE_CHECKING:
    from cnsn_cli.deploy.comparison import Comparison
    from cnsn_cli.evaluation.costs import Difference


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 10**7 else f"{count / 1e6:,.3f} M"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("model", str),
    "drops": ("drops", str),
    "width": ("width", lambda x: f"{x:g}"),
    "macs": ("MACs", _millions),
    "operations": ("operations", _millions),
    "parameters": ("parameters", lambda n: f"{n:,}"),
    "bytes": ("size", lambda n: f"{n / 2**20:,.2f} MiB"),
    "accuracy": ("accuracy", lambda x: f"{x:.2%}"),
    "loss": ("loss", lambda x: f"{x:.4f}"),
}


def printable(text: str) -> str:
    """`text` with control characters spelled out, so that names from files cannot steer a terminal.

    Characters that stdout cannot show are spelled out too, because a table must know how wide they are.
    """
    spelled = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped(text))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return spelled.encode(encoding, "backslashreplace").decode(encoding)


def shortened(text: str, most: int = 2000) -> str:
    """`text`, without its middle if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def print_notes(notes: Sequence[str]) -> None:
    """Print to stderr what was left out without an error."""
    for note in notes:
        print(printable(note), file=sys.stderr)


def print_skipped(problems: Sequence[str]) -> None:
    """Print to stderr what is wrong with the images that were left out."""
    if problems:
        print(f"images skipped: {len(problems):,}", file=sys.stderr)
    for problem in problems:
        print(f"  {printable(problem)}", file=sys.stderr)


def print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content, indent=2))


def print_models(models: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print a row for each model, and a column for each field that is known."""
    full = all(model.get("width", 1) == 1 for model in models)
    known = [f for f in COLUMNS if models[0].get(f) is not None and not (f == "width" and full)]
    # With accuracy and loss a row would not fit 80 columns; operations are left out, as MACs are so similar.
    fields = [field for field in known if field != "operations" or "accuracy" not in known]
    columns = [COLUMNS[field][0] for field in fields]
    rows = [[COLUMNS[field][1](model[field]) for field in fields] for model in models]
    print_table(columns, rows, title)


def print_doubts(not_counted: Sequence[str], different: "list[Difference]") -> None:
    """Print what is in none of the figures, and where another counter has other MACs."""
    if not_counted:
        print(f"not counted: {', '.join(map(printable, not_counted))}")
    for name, macs, other in different:
        share = f"{abs(other - macs) / macs:.1%} {'more' if other > macs else 'fewer'}" if macs else "not 0"
        print(f"warning: torch.utils.flop_counter counts {other:,} MACs for {name}, {share}")


def print_comparison(comparison: "Comparison", dtype: str) -> None:
    """Print a row for float32 and a row for `dtype`."""
    rows = [
        [
            name,
            f"{figures.bytes / 2**20:,.2f} MiB",
            "unknown" if figures.accuracy is None else f"{figures.accuracy:.2%}",
            f"{figures.latency * 1e3:.2f} ms",
        ]
        for name, figures in (("float32", comparison.before), (dtype, comparison.after))
    ]
    seen = f"accuracy on {comparison.images:,} test images" if comparison.images else "no test images at hand"
    title = f"{seen}; latency for one image, on one thread"
    print_table(("weights", "file", "accuracy", "latency"), rows, title)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    texts: Sequence[int] = (0,),
) -> None:
    """Print a table to stdout. The columns numbered in `texts` are texts, which fold on a narrow terminal.

    All other columns are figures, which are never cut.
    """
    from cnsn_cli.commands.table import show

    if title:
        print(printable(title), flush=True)
    show(columns, [[printable(cell) for cell in row] for row in rows], texts)
