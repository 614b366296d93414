"""The arguments of a run: one list for Python, the command line and the state."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import cnsn_cli
from cnsn_cli.errors import RecipeError
from cnsn_cli.training.arguments import Arguments, Options
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.request import Request, decide
from tests.conftest import TINY

KEYWORDS = {
    "drop": None, "freeze_base": None, "init": None, "pretrained": False, "data_dir": "data",
    "image_size": None, "in_channels": 3, "classes": None, "device": "auto", "precision": None,
    "compiled": "auto", "capture": True, "deterministic": False, "save_every": "10m", "force": False,
    "skip_bad": False, "limit_images": None, "profile": False, "image_column": None, "label_column": None,
    "test_data": None, "track": (),
}  # fmt: skip


def asked(**changes: object) -> Arguments:
    return Arguments(TINY, (1,), "digits", load_recipe("quick"), "out", **{"device": "cpu", **changes})


def test_train_shows_and_documents_each_argument():
    parameters = inspect.signature(cnsn_cli.train).parameters
    assert list(parameters)[:5] == ["arch", "exits", "data", "recipe", "out"]
    shown = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert shown.pop("watch")("an event") is None
    assert shown == KEYWORDS
    text = cnsn_cli.train.__doc__
    for name in parameters:
        assert f"    {name}: " in text
    said = "Also save within an epoch, after steps (500) or minutes (10m). Default: '10m'."
    assert f"save_every: {said}" in text
    assert "--" not in text
    assert inspect.signature(cnsn_cli.dry_run).parameters == parameters
    assert said in cnsn_cli.dry_run.__doc__
    for name in inspect.signature(cnsn_cli.resume).parameters:
        assert f"    {name}: " in cnsn_cli.resume.__doc__


def test_an_unknown_argument_is_refused_in_one_line():
    recipe = load_recipe("quick")
    with pytest.raises(
        TypeError, match=r"^train has no argument 'drops': choose from arch, exits, .*, watch$"
    ):
        cnsn_cli.train(TINY, (1,), "digits", recipe, "never", drops=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'out'"):
        cnsn_cli.train(TINY, (1,), "digits", recipe=recipe)


@pytest.mark.parametrize(
    "words",
    [
        ("--image-size", "64"),
        ("--drop", "2"),
        ("--save-every", "5"),
        ("--compile", "on"),
        ("--track", "mlflow"),
    ],
)
@pytest.mark.parametrize(("function", "flags"), [("run.train", ()), ("dry_run.dry_run", ("--dry-run",))])
def test_the_command_line_and_python_ask_for_the_same(cnsn, monkeypatch, words, function, flags):
    """Each option reaches `train` and `dry_run` under the name of its argument."""
    given = []
    monkeypatch.setattr(f"cnsn_cli.training.{function}", lambda *a, **options: given.append(options) or 1 / 0)
    exits = () if "--drop" in words else ("--exits", "1")
    with pytest.raises(ZeroDivisionError):
        cnsn("train", "--arch", TINY, *exits, *words, *flags)
    assert given[0].keys() == {*KEYWORDS, "watch"}
    changed = {name for name in KEYWORDS if given[0][name] != KEYWORDS[name]}
    assert changed == {{"--compile": "compiled"}.get(words[0], words[0][2:].replace("-", "_"))}


def test_a_request_is_decided_and_holds_no_paths():
    request = decide(asked(init=Path("weights.safetensors"), data_dir=Path("here")))
    assert (request.init, request.data_dir) == ("weights.safetensors", "here")
    assert (request.device, request.precision, request.compiled) == ("cpu", None, "off")
    assert {option.name for option in fields(Options)} <= {part.name for part in fields(Request)}
    for changes in ({"device": "mps"}, {"data_dir": Path("here")}):
        assert isinstance(next(iter(request.with_changes(changes).flat()[name] for name in changes)), str)


def test_what_is_decided_about_compiling(monkeypatch):
    """`auto` is decided by a measured step on CUDA, but a repeatable run compiles only if it is asked to."""
    found = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr("cnsn_cli.training.request.choose_device", lambda name, d=device: torch.device(d))
        for deterministic in (False, True):
            words = [
                decide(asked(compiled=w, deterministic=deterministic)).compiled for w in ("auto", "on", "off")
            ]
            found[device, deterministic] = words
    assert found.pop(("cuda", False)) == ["auto", "on", "off"]
    assert set(map(tuple, found.values())) == {("off", "on", "off")}


def test_older_states_say_true_or_false():
    request = decide(asked())
    assert [request.with_changes({"compiled": old}).compiled for old in (True, False)] == ["on", "off"]


def test_values_out_of_range_are_errors_of_ours():
    with pytest.raises(RecipeError, match="this run: image_size: Input should be less than or equal to 1024"):
        decide(asked(image_size=5000))
    with pytest.raises(RecipeError, match="this run: drops: Unexpected keyword argument"):
        decide(asked()).with_changes({"drops": 3})
