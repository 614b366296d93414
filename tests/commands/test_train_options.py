"""The options of `cnsn train`: each one reaches the recipe or the run, and no run is started."""

import re
from typing import get_origin

import pytest

from cnsn_cli.commands.hyperparameters import OPTIONS
from cnsn_cli.errors import CnsnError
from cnsn_cli.training.recipe import Recipe
from tests.conftest import TINY

FLAGS = {
    "epochs": 1, "batch_size": 4, "lr": 0.011, "momentum": 0.8, "nesterov": True, "weight_decay": 0.002,
    "decay_norms": False, "schedule": "linear", "milestones": (3, 5), "gamma": 0.3, "warmup_epochs": 0.5,
    "label_smoothing": 0.2, "ema": 0.9, "crop": "resized", "crop_padding": 1,
    "crop_scale": (0.5, 0.75), "crop_ratio": (0.5, 1.5), "flip": "alternating", "auto_augment": "rand",
    "color_jitter": 0.3, "erase": 0.1, "cutout": 3, "mix": "mixup", "mix_alpha": 0.4, "crop_pct": 0.8,
    "val_split": 0.25, "bn": "private", "step_down": "stem", "distill": "chain", "distill_weight": 0.7,
    "temperature": 4.0,
    "gradient_scale": (0.5, 0.25), "final_scale": (0.1,), "seed": 9, "accumulate": 2, "optimizer": "muon",
    "pretrained_lr": 0.5, "betas": (0.8, 0.9), "clip_norm": 2.5, "step_down_init": "fit",
}  # fmt: skip


@pytest.fixture
def called(monkeypatch):
    """The calls of `cnsn_cli.training.run.train` that `cnsn train` makes."""
    calls = []

    def record(*arguments, **options):
        calls.append((arguments, options))
        raise CnsnError("enough")

    monkeypatch.setattr("cnsn_cli.training.run.train", record)
    return calls


def words(key: str, value: object) -> list[object]:
    """A hyper-parameter as words of the command line."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else value]


def test_hyperparameters_are_those_of_a_recipe():
    assert list(OPTIONS) == list(Recipe.model_fields)
    for name, field in Recipe.model_fields.items():
        is_list = get_origin(field.annotation) is tuple
        assert OPTIONS[name].kind == (str if is_list else field.annotation), name
        assert OPTIONS[name].default == (None if field.is_required() else field.default), name


def test_every_flag_reaches_the_recipe(cnsn, called):
    pairs = [part for key, value in FLAGS.items() for part in words(key, value)]
    cnsn("train", "--arch", TINY, "--exits", "1", *pairs)
    ((_, _, _, recipe, _), _) = called[0]
    assert set(FLAGS) == set(type(recipe).model_fields)
    assert recipe.model_dump() == FLAGS


def test_every_option_reaches_the_run(cnsn, called, tmp_path):
    options = {
        "data_dir": str(tmp_path),
        "image_size": 64,
        "in_channels": 1,
        "classes": 4,
        "device": "cpu",
        "precision": "bf16",
    }
    words = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)]
    cnsn("train", "--arch", TINY, "--exits", "1,4", "--data", "x", "--out", "o", "--force", *words)
    arguments, given = called[0]
    assert (arguments[0].text, *arguments[1:3]) == (TINY, (1, 4), "x")
    assert str(arguments[4]) == "o"
    assert {key: given[key] for key in options} == options
    assert given["force"]
    assert given["compiled"] == "auto"


def test_without_exits_the_weight_decay_of_the_baseline(cnsn, called):
    """A sub-model alone is not a baseline: it is compared with the same sub-model inside a network."""
    for models in (("--exits", ""), ("--exits", "1"), ("--drop", "1")):
        cnsn("train", "--arch", TINY, *models)
    assert [arguments[3].weight_decay for arguments, _ in called] == [6e-3, 6e-4, 6e-4]
    assert re.fullmatch(r"runs/vgg11-width=0.0625-cifar10-\d{8}-\d{6}", str(called[0][0][4]))
