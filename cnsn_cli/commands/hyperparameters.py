"""The hyper-parameters of a recipe as options of a command.

They are listed here again, because importing Recipe would add a tenth of a second to every command; a test
compares the two lists. `cnsn train` uses them. This module does not know which values are valid.
"""

import inspect
from typing import Annotated, Any

import typer

from cnsn_cli.choices import BatchNormMode, Distill, Flip, Mix, Schedule, StepDown
from cnsn_cli.commands.listed import option, with_listed

PANEL = "Hyper-parameters (each overrides the recipe)"
Numbers = str  # 2,7

OPTIONS: dict[str, tuple[Any, str | None]] = {
    "epochs": (int, None),
    "batch_size": (int, None),
    "lr": (float, "Learning rate."),
    "momentum": (float, None),
    "nesterov": (bool, "Nesterov momentum."),
    "weight_decay": (float, None),
    "decay_norms": (bool, "Weight decay also on biases and BN."),
    "schedule": (Schedule, "step: the learning rate falls at milestones; others: down to 0."),
    "milestones": (Numbers, "Epochs after which the learning rate falls, such as 50,100."),
    "gamma": (float, "The factor of the learning rate at a milestone."),
    "warmup_epochs": (float, "Epochs in which the learning rate rises to --lr."),
    "label_smoothing": (float, None),
    "ema": (float, "Save an average of the weights with this decay; 0: no average."),
    "crop_padding": (int, "Pixels to pad before a random crop."),
    "flip": (Flip, "Mirror images at random, or every other epoch."),
    "cutout": (int, "Side in pixels of a square that is blanked."),
    "mix": (Mix, "Mix each image with another one."),
    "mix_alpha": (float, "The shares of mixed images follow Beta(alpha, alpha)."),
    "val_split": (float, "Share of the training images that selects the best epoch; 0: test images."),
    "bn": (BatchNormMode, "BN statistics for each model (private), or one set (shared)."),
    "step_down": (StepDown, "One large conv (patch), or 3x3 convs of stride 2 (stem)."),
    "distill": (Distill, "The teacher of a sub-model: base, or with chain the model before it."),
    "distill_weight": (float, "Share of the teacher in the loss; the labels get the rest."),
    "temperature": (float, "Temperature of both softmaxes in distillation."),
    "gradient_scale": (Numbers, "Weight of sub-models in the shared units: 0.5, or 0.5,0.25."),
    "final_scale": (Numbers, "The gradient scale at the last step; default: it stays the same."),
    "seed": (int, None),
}


def given_hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the options that the user gave, as a recipe takes them."""
    return {name: _value(name, value) for name, value in values.items() if value is not None}


def _value(name: str, value: Any) -> Any:
    if OPTIONS[name][0] is Numbers:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _option(name: str) -> inspect.Parameter:
    kind, text = OPTIONS[name]
    return option(name, Annotated[kind | None, typer.Option(help=text, rich_help_panel=PANEL)])


with_hyperparameters = with_listed("hyperparameters", [_option(name) for name in OPTIONS])
