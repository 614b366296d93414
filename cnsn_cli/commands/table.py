"""Tables that fit a terminal: texts fold and figures stay whole; on a narrow terminal a row becomes a block.

`output` prints with this module, which does not know what a table shows.
"""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

LEAST = 16  # the width below which a text is not folded any more
GAPS = (3, 1)  # spaces between two columns: the wider one if it fits
ASCII = Box(
    "    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True
)  # rich's own has bars between columns
Row = Sequence[str]


def show(columns: Row, rows: Sequence[Row], texts: Sequence[int]) -> None:
    """Print a table to stdout; the columns numbered in `texts` may fold and are flush left."""
    console = Console()
    natural = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    least = [
        min(width, max(LEAST, cell_len(column))) if index in texts else width
        for index, (column, width) in enumerate(zip(columns, natural, strict=True))
    ]
    room = console.width if console.is_terminal else None  # a pipe is as wide as the table needs
    gap = next((gap for gap in GAPS if room is None or _total(least, gap) <= room), None)
    if gap is None:
        _show_blocks(columns, rows)
        return
    widths = natural if room is None else _narrowed(natural, least, room - gap * len(natural))
    box = ASCII if console.options.ascii_only else SIMPLE_HEAD
    table = Table(box=box, show_edge=False, padding=(0, gap // 2))
    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        table.add_column(column, justify="left" if index in texts else "right", width=width, no_wrap=True)
    for line in _lines(rows, widths, console):
        table.add_row(*map(Text, line))
    console.width = _total(widths, gap)
    console.print(table)


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * len(widths)


def _narrowed(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths between `least` and `natural`, at most `room` together: the widest text gives way first."""
    widths = list(natural)
    while sum(widths) > room:
        foldable = (index for index, width in enumerate(widths) if width > least[index])
        widths[max(foldable, key=widths.__getitem__)] -= 1
    return widths


def _lines(rows: Sequence[Row], widths: Sequence[int], console: Console) -> Iterator[Row]:
    """The lines of all rows. The end of a folded first cell stands beside rows whose first cell is empty."""
    left: list[str] = []
    empty = [""] * (len(widths) - 1)
    for row in rows:
        first, *others = (_folded(cell, width, console) for cell, width in zip(row, widths, strict=True))
        if row[0]:
            yield from ([line, *empty] for line in left)
            left = first
        for line in range(max(map(len, others), default=1)):
            start = left.pop(0) if left else ""
            yield [start, *(cell[line] if line < len(cell) else "" for cell in others)]
    yield from ([line, *empty] for line in left)


def _folded(cell: str, width: int, console: Console) -> list[str]:
    return [line.plain for line in Text(cell).wrap(console, width, overflow="fold")] or [""]


def _show_blocks(columns: Row, rows: Sequence[Row]) -> None:
    """Print a line for each cell. The terminal folds what is too long, and cuts nothing."""
    width = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            print()
        for column, cell in zip(columns, row, strict=True):
            if cell:
                print(f"{column:<{width}}  {cell}")
