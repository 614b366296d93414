"""The grammar of architecture strings: `name[:variant][:key=value,key=value]`.

The registry parses here what users type and what files name. Knows no architecture: whether there is such a
name or such an option is for others to say.
"""

import ast
from typing import Any, NamedTuple

from cnsn_cli.errors import ArchitectureError


class Spec(NamedTuple):
    """What an architecture string says."""

    name: str
    variant: str | None
    options: dict[str, Any]

    @property
    def function(self) -> str:
        """`module:function`, if the string names a function and no installed architecture."""
        return f"{self.name}:{self.variant}" if self.variant else self.name


def parse(text: str) -> Spec:
    """Take an architecture string to pieces; values are Python literals, or else texts.

    Raises ArchitectureError where the string does not follow the grammar.
    """
    name, _, tail = text.partition(":")
    first, _, rest = tail.partition(":")
    variant, tail = (None, tail) if "=" in first or not first else (first, rest)
    options = {}
    for item in filter(None, _split(tail)):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ArchitectureError(f"cannot read {item!r} in {text!r}: write name:key=value,key=value")
        options[key] = _literal(value)
    return Spec(name, variant, options)


def _split(text: str) -> list[str]:
    """The parts between commas, except those in brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
