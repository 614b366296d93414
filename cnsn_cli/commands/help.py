"""Help texts: options in panels, each with its meaning; nothing is cut on a terminal of any width.

Every command is a Command of this module, which does not know what the options mean.
"""

import inspect
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from typer import BadParameter
from typer.core import TyperArgument, TyperCommand

if TYPE_CHECKING:
    from rich.console import RenderableType

ARGUMENTS, OTHERS = "Arguments", "Options"
# Parameters whose value may be empty.
LISTS = {"exits", "milestones", "gradient_scale", "final_scale", "track"}
NARROW = 60  # below it, the meaning of an option stands under the option, not beside it


class Command(TyperCommand):
    """A command whose help shows the options in `panels`: parameter -> title, in the order of the titles."""

    panels: ClassVar[Mapping[str, str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty values of options and arguments: an empty path would be the working folder."""
        lists = {name for option in self.params if option.name in LISTS for name in option.opts}
        options = {name for option in self.params for name in option.opts if name.startswith("-")} - lists
        for before, word in pairwise(["", *args]):
            name, equals, value = word.partition("=")
            if name in options and equals and not value:
                raise _empty(name, ctx)
            if not word and before not in lists:
                raise _empty(before if before in options else "an argument", ctx)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; Typer's own cuts long words, and breaks the choices of an option."""
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        console = Console(highlight=False)
        console.print()
        console.print(Text(f" {self.get_usage(ctx)}", "bold"))
        for paragraph in inspect.cleandoc(self.help or "").split("\n\n"):
            console.print()
            console.print(Text(" " + paragraph.replace("\n", " ")))
        console.print()
        for title, records in self._records(ctx).items():
            console.print(
                Panel(_grid(records, console.width), title=title, title_align="left", border_style="dim")
            )

    def meaning(self, name: str, text: str) -> str:
        """The help text of the parameter `name`, made from the `text` of its declaration."""
        return text

    def _records(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Title of a panel -> for each of its parameters the option and its meaning."""
        titles = (ARGUMENTS, *dict.fromkeys(self.panels.values()), OTHERS)
        records: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for parameter in self.get_params(ctx):
            name, record = str(parameter.name), parameter.get_help_record(ctx)
            if record:
                usual = ARGUMENTS if isinstance(parameter, TyperArgument) else OTHERS
                option, text = record
                records[self.panels.get(name, usual)].append(
                    (option.replace(", ", " "), self.meaning(name, text))
                )
        return {title: found for title, found in records.items() if found}


def _empty(name: str, ctx: Any) -> BadParameter:
    return BadParameter(f"{name} is empty: give a value, or leave it out", ctx=ctx)


def _grid(records: list[tuple[str, str]], width: int) -> "RenderableType":
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    if width < NARROW:
        for option, text in records:
            grid.add_row(Text(option, "bold cyan", overflow="fold"))
            grid.add_row(Padding(Text(text, overflow="fold"), (0, 0, 0, 2)))
        return grid
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for option, text in records:
        grid.add_row(Text(option, "bold cyan"), Text(text))
    return grid
