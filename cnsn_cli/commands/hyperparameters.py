"""The hyper-parameters of a recipe as options of a command."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_origin

import typer

from cnsn_cli.recipe import Recipe

PANEL = "Hyper-parameters (each overrides the recipe)"


def with_hyperparameters(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` an option for each field of Recipe; those that are given reach it as `overrides`."""

    @wraps(command)
    def run(**options: Any) -> None:
        given = {name: options.pop(name) for name in Recipe.model_fields}
        overrides = {name: _value(name, value) for name, value in given.items() if value is not None}
        command(**options, overrides=overrides)

    parameters = {
        name: parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "overrides"
    }
    parameters |= {
        name: inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name)
        )
        for name in Recipe.model_fields
    }
    # Typer looks at these two.
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _annotation(name: str) -> Any:
    field = Recipe.model_fields[name]
    kind: Any = str if _is_list(name) else field.annotation
    return Annotated[kind | None, typer.Option(help=field.description, rich_help_panel=PANEL)]


def _is_list(name: str) -> bool:
    return get_origin(Recipe.model_fields[name].annotation) is tuple


def _value(name: str, value: Any) -> Any:
    """What an option says as the recipe takes it: `2,7` is a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if _is_list(name) else value
