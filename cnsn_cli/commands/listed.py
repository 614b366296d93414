"""Options of a command that are listed elsewhere, those of a recipe and of a run, as Typer wants them.

This module does not know which commands and options there are.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """The parameter of a command that Typer makes an option of."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_listed(name: str, options: list[inspect.Parameter]) -> Callable[..., Callable[..., None]]:
    """A decorator: `options` stand in place of the keyword `name` of a command, which gets them as a dict."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*args: Any, **values: Any) -> None:
            listed = {option.name: values.pop(option.name) for option in options}
            command(*args, **values, **{name: listed})

        written = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [part for own in written for part in (options if own.name == name else [own])]
        # Typer looks at these two.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
