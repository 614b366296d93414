"""The hyper-parameters of a recipe as options of a command.

They are listed here, with no look at Recipe, because that would take a tenth of a second of every command.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal

import typer

PANEL = "Hyper-parameters (each overrides the recipe)"
Numbers = str  # 2,7

OPTIONS: dict[str, tuple[Any, str | None]] = {
    "epochs": (int, None),
    "batch_size": (int, None),
    "lr": (float, "Learning rate."),
    "momentum": (float, None),
    "nesterov": (bool, "Nesterov momentum."),
    "weight_decay": (float, None),
    "decay_norms": (bool, "Weight decay on biases and BN too."),
    "schedule": (Literal["step", "cosine", "linear"], "The learning rate falls at milestones, or to 0."),
    "milestones": (Numbers, "Epochs such as 50,100 after which it falls."),
    "gamma": (float, "By what factor it falls then."),
    "warmup_epochs": (float, "Epochs in which the learning rate rises to --lr."),
    "label_smoothing": (float, None),
    "ema": (float, "Decay of the average of the weights that is kept; 0: no average."),
    "crop_padding": (int, "Pixels to pad before a random crop."),
    "flip": (Literal["none", "random", "alternating"], "Mirror images at random, or every other epoch."),
    "cutout": (int, "Side in pixels of the square that is blanked."),
    "mix": (Literal["none", "mixup", "cutmix"], "Mix each image with another one."),
    "mix_alpha": (float, "Their shares follow Beta(alpha, alpha)."),
    "val_split": (float, "Share of the training images that selects the best epoch; 0: test images."),
    "bn": (Literal["private", "shared"], "BN statistics per model, or one set."),
    "step_down": (Literal["patch", "stem"], "One large conv, or 3x3 convs of stride 2."),
    "distill": (Literal["none", "base", "chain"], "Who teaches a sub-model: base, or the model before."),
    "distill_weight": (float, "Share of the teacher beside the labels."),
    "temperature": (float, "Of both softmaxes in distillation."),
    "gradient_scale": (Numbers, "Weight of sub-models in the shared units: 0.5, or 0.5,0.25."),
    "final_scale": (Numbers, "The gradient scale at the last step; by default it stays."),
    "seed": (int, None),
}


def with_hyperparameters(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` these options; those that are given reach it as `overrides`."""

    @wraps(command)
    def run(**options: Any) -> None:
        given = {name: options.pop(name) for name in OPTIONS}
        overrides = {name: _value(name, value) for name, value in given.items() if value is not None}
        command(**options, overrides=overrides)

    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    del parameters["overrides"]
    parameters |= {name: _parameter(name) for name in OPTIONS}
    # Typer looks at these two.
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _parameter(name: str) -> inspect.Parameter:
    kind, text = OPTIONS[name]
    annotation: Any = Annotated[kind | None, typer.Option(help=text, rich_help_panel=PANEL)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _value(name: str, value: Any) -> Any:
    if OPTIONS[name][0] is Numbers:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value
