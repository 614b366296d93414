"""Help texts on terminals of many widths, and the recipes that they show."""

import json
import re
import tomllib

import pytest

from cnsn_cli.commands.hyperparameters import OPTIONS
from cnsn_cli.commands.train import PANELS
from cnsn_cli.main import app
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.recipe_files import presets

COMMANDS = [command.name for command in app.registered_commands]


def meanings(text):
    """Option -> meaning, from a help text that is wide enough for one line each."""
    rows = re.findall(r"^│ (?:-o )?(--[a-z-]+).*? {2,}(\S.*?) *│$", text, re.M)
    return dict(rows)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [40, 60, 80])
def test_every_word_is_whole(shown, command, width):
    """The words of a wide help text are those of a narrow one; only long words of an option may fold."""
    wide, narrow = (shown(columns, "utf-8", command, "--help").out for columns in (400, width))
    words, found = (re.sub(r"[│╭╮╰╯─]", " ", text).split() for text in (wide, narrow))
    assert "…" not in narrow
    assert all(len(line) <= width for line in narrow.splitlines())
    assert "".join(sorted("".join(words))) == "".join(sorted("".join(found)))
    if width == 80:
        assert sorted(words) == sorted(found)


def test_every_option_of_train_has_a_panel_and_a_meaning(shown):
    out = shown(400, "utf-8", "train", "--help").out
    assert re.findall(r"^╭─ (.*?) ─+╮$", out, re.M) == list(PANELS)
    explained = meanings(out)
    options = {name.replace("_", "-") for names in PANELS.values() for name in names} - {"compiled"}
    assert {option.removeprefix("--") for option in explained} == options | {"compile"}
    assert all(len(meaning.split("[")[0]) > 5 for meaning in explained.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_help_has_the_value_in_each_recipe(shown, name):
    meaning = meanings(shown(400, "utf-8", "train", "--help").out)[f"--{name.replace('_', '-')}"]
    listed = meaning.split("  [")[1].removesuffix("]").replace(" (without exits 0.006)", "")
    found = {}
    for part in listed.split("; "):
        *recipes, value = re.split(r",? (?=\S+$)|, (?=[a-z]+,? )", part)
        found |= dict.fromkeys(recipes or presets(), value)
    for recipe in presets():
        value = getattr(load_recipe(recipe), name)
        if isinstance(value, bool):
            assert found[recipe] == ("on" if value else "off")
        elif isinstance(value, tuple):
            numbers = () if found[recipe] == "none" else tuple(map(float, found[recipe].split(",")))
            assert numbers == value
        else:
            assert type(value)(found[recipe]) == value


def test_recipes_are_listed(cnsn):
    out = cnsn("recipes").out
    assert re.search(r"^ paper +300 +32 +0\.01 +step +Fuengfusin & Tamukoh 2021", out, re.M)
    assert re.search(r"^ quick +4 +32 +0\.05 +cosine +For a first try that takes minutes", out, re.M)
    listed = json.loads(cnsn("recipes", "--json").out)["recipes"]
    assert listed == {name: load_recipe(name).model_dump(mode="json") for name in presets()}


@pytest.mark.parametrize("name", presets())
def test_a_printed_recipe_is_a_file_for_the_option_recipe(cnsn, tmp_path, name):
    path = tmp_path / "mine.toml"
    path.write_text(cnsn("recipes", name).out)
    assert load_recipe(str(path)) == load_recipe(name)
    assert ("# without exits: weight_decay = 0.006" in path.read_text()) == (name == "paper")
    path.write_text('# Größe\nextends = "fast"\nepochs = 7')
    assert tomllib.loads(cnsn("recipes", path).out)["epochs"] == 7
    assert cnsn("recipes", "papr").err.startswith("cnsn: no recipe 'papr': choose best, fast, finetune, pap")
