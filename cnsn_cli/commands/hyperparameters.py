"""The hyper-parameters of a recipe as options of a command, with their values in each recipe as help.

They are listed here again, because importing Recipe would add a tenth of a second to every command; a test
compares the two lists. `cnsn train` uses them. This module does not know which values are valid.
"""

import inspect
from typing import Annotated, Any, NamedTuple

import typer

from cnsn_cli.choices import (
    AutoAugment,
    BatchNormMode,
    Crop,
    Distill,
    Flip,
    Mix,
    OptimizerName,
    Schedule,
    StepDown,
    StepDownInit,
)
from cnsn_cli.commands.listed import option, with_listed

Numbers = str  # 2,7


class Setting(NamedTuple):
    """The kind of an option, its help text, and the value of recipes that do not set it."""

    kind: Any
    text: str
    default: Any = None


OPTIONS: dict[str, Setting] = {
    "epochs": Setting(int, "How often training goes through all images."),
    "batch_size": Setting(int, "Images in a batch."),
    "accumulate": Setting(
        int, "Batches in a training step, whose gradients are averaged; BN normalises each batch.", 1
    ),
    "optimizer": Setting(OptimizerName, "sgd, adamw, or muon; the last two want an --lr near 0.001.", "sgd"),
    "lr": Setting(float, "Learning rate."),
    "pretrained_lr": Setting(float, "Share of --lr for pretrained weights; new weights get all of it.", 1),
    "momentum": Setting(float, "Momentum of SGD and Muon: the share of a step that the next one repeats."),
    "nesterov": Setting(bool, "Nesterov momentum.", False),
    "betas": Setting(Numbers, "How long AdamW remembers gradients and their squares.", (0.9, 0.999)),
    "weight_decay": Setting(float, "How strongly weights are pulled towards 0."),
    "decay_norms": Setting(bool, "Weight decay also on biases and BN.", True),
    "clip_norm": Setting(float, "The largest norm of all gradients together; 0: no limit.", 0),
    "schedule": Setting(Schedule, "step: the learning rate falls at milestones; others: down to 0."),
    "milestones": Setting(Numbers, "Epochs after which the learning rate falls, such as 50,100.", ()),
    "gamma": Setting(float, "The factor of the learning rate at a milestone.", 0.1),
    "warmup_epochs": Setting(float, "Epochs in which the learning rate rises to --lr.", 0),
    "label_smoothing": Setting(float, "Share of each label that all classes get.", 0),
    "ema": Setting(float, "Save an average of the weights with this decay; 0: no average.", 0),
    "crop": Setting(Crop, "Random crops: of padded images, or of photos and resized.", "padded"),
    "crop_padding": Setting(int, "Pixels to pad before a random crop.", 0),
    "crop_scale": Setting(
        Numbers, "With --crop resized: the least and the largest share of a photo's area.", (0.08, 1.0)
    ),
    "crop_ratio": Setting(
        Numbers, "With --crop resized: the least and the largest width / height.", (0.75, 1.3333)
    ),
    "flip": Setting(Flip, "Mirror images at random, or every other epoch.", "none"),
    "auto_augment": Setting(AutoAugment, "TrivialAugment (Wide) or RandAugment for photos.", "none"),
    "color_jitter": Setting(
        float, "By which share brightness, contrast and saturation of photos change at most.", 0
    ),
    "erase": Setting(float, "Probability that a rectangle of a photo is erased.", 0),
    "cutout": Setting(int, "Side in pixels of a square that is blanked.", 0),
    "mix": Setting(Mix, "Mix each image with another one.", "none"),
    "mix_alpha": Setting(float, "The shares of mixed images follow Beta(alpha, alpha).", 1),
    "crop_pct": Setting(
        float, "Share of a photo's shorter side that its middle, which is evaluated, has.", 1
    ),
    "val_split": Setting(
        float, "Share of the training images that selects the best epoch; 0: test images.", 0
    ),
    "bn": Setting(BatchNormMode, "BN statistics for each model (private), or one set (shared).", "private"),
    "step_down": Setting(StepDown, "One large conv (patch), or 3x3 convs of stride 2 (stem).", "patch"),
    "step_down_init": Setting(
        StepDownInit, "Step-down convs start at random, or fitted to a pretrained base-model.", "random"
    ),
    "distill": Setting(
        Distill, "The teacher of a sub-model: base, or with chain the model before it.", "none"
    ),
    "distill_weight": Setting(float, "Share of the teacher in the loss; the labels get the rest.", 0.5),
    "temperature": Setting(float, "Temperature of both softmaxes in distillation.", 2),
    "gradient_scale": Setting(Numbers, "Weight of sub-models in the shared units: 0.5, or 0.5,0.25.", (1.0,)),
    "final_scale": Setting(Numbers, "The gradient scale at the last step; none: it stays the same.", ()),
    "seed": Setting(int, "The seed of weights, order and augmentation.", 0),
}


def values_in_recipes(name: str) -> str:
    """The value of a hyper-parameter in each recipe: `best, fast on; paper, quick off`, or one for all."""
    from cnsn_cli.training.recipe_files import presets, read_settings

    recipes: dict[str, list[str]] = {}  # by their value
    for recipe in presets():
        settings = read_settings(recipe)
        value = _shown(settings.get(name, OPTIONS[name].default))
        if baseline := settings.get(f"baseline_{name}"):
            value += f" (without exits {_shown(baseline)})"
        recipes.setdefault(value, []).append(recipe)
    if len(recipes) == 1:
        return next(iter(recipes))
    return "; ".join(f"{', '.join(names)} {value}" for value, names in recipes.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def given_hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the options that the user gave, as a recipe takes them."""
    return {name: _value(name, value) for name, value in values.items() if value is not None}


def _value(name: str, value: Any) -> Any:
    if OPTIONS[name].kind is Numbers:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _option(name: str) -> inspect.Parameter:
    setting = OPTIONS[name]
    return option(name, Annotated[setting.kind | None, typer.Option(help=setting.text)])


with_hyperparameters = with_listed("hyperparameters", [_option(name) for name in OPTIONS])
