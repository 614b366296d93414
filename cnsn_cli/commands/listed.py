"""Options that are listed elsewhere, as Typer wants them: the settings of a recipe, the arguments of a run.

`hyperparameters` and `cnsn train` use this module. It does not know which commands and options there are.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """A parameter of a command, from which Typer makes an option."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_listed(name: str, options: list[inspect.Parameter]) -> Callable[..., Callable[..., None]]:
    """A decorator that replaces the keyword `name` of a command by `options`, in the same place.

    The command gets their values as a dict, under the keyword `name`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*args: Any, **values: Any) -> None:
            listed = {option.name: values.pop(option.name) for option in options}
            command(*args, **values, **{name: listed})

        written = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [part for own in written for part in (options if own.name == name else [own])]
        # Typer reads these two attributes.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
