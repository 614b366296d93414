"""The grammar of architecture strings: `name[:variant][:key=value,key=value]`.

The registry parses strings that users type and strings that files contain. This module knows no architecture:
the registry looks up the name, and Architecture checks the options.
"""

import ast
from typing import Any, NamedTuple

from cnsn_cli.errors import ArchitectureError


class Spec(NamedTuple):
    """The parts of an architecture string."""

    name: str
    variant: str | None
    options: dict[str, Any]

    @property
    def function(self) -> str:
        """The name `module:function`, for a string that does not name an installed architecture."""
        return f"{self.name}:{self.variant}" if self.variant else self.name


def parse(text: str) -> Spec:
    """Split an architecture string into its name, its variant and its options.

    The value of an option is a Python literal; a value that is not a literal stays a text. Raises
    ArchitectureError if the string does not follow the grammar.
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


def with_option(text: str, key: str, value: str) -> str:
    """The architecture string `text` with `key=value` in place of the old value, or at its end."""
    name, _, tail = text.partition(":")
    first, _, rest = tail.partition(":")
    start, tail = (f"{name}:", tail) if "=" in first or not first else (f"{name}:{first}:", rest)
    items = [item for item in _split(tail) if item]
    keys = [item.partition("=")[0] for item in items]
    place = keys.index(key) if key in keys else len(keys)
    items[place : place + 1] = [f"{key}={value}"]
    return start + ",".join(items)


def _split(text: str) -> list[str]:
    """Split at commas, but not at commas inside brackets."""
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
