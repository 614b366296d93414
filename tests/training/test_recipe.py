"""Recipes: presets, files that extend others, learning rates, and errors in recipes."""

import math

import pytest

from cnsn_cli.errors import RecipeError
from cnsn_cli.training.recipe import Recipe, load_recipe
from cnsn_cli.training.recipe_files import presets


def test_paper_is_the_recipe_of_section_3():
    recipe = load_recipe("paper")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (300, 32, 0.01, 0.9)
    assert (recipe.milestones, recipe.gamma, recipe.warmup_epochs) == ((50, 100, 150), 0.1, 1)
    assert (recipe.crop_padding, recipe.flip, recipe.selection) == (4, "random", "test")
    assert recipe.weight_decay == 6e-4
    assert (recipe.bn, recipe.step_down, recipe.distill, recipe.mix) == ("private", "patch", "none", "none")
    assert (recipe.nesterov, recipe.decay_norms, recipe.ema, recipe.cutout) == (False, True, 0, 0)
    assert (recipe.label_smoothing, recipe.gradient_scale, recipe.final_scale) == (0, (1,), ())
    assert load_recipe("paper", baseline=True).weight_decay == 6e-3
    assert load_recipe("paper", {"weight_decay": 1e-4}, baseline=True).weight_decay == 1e-4


def test_learning_rate_of_the_paper():
    recipe, steps = load_recipe("paper"), 100
    assert recipe.learning_rate(0, steps) == pytest.approx(0.01 / 100)
    assert recipe.learning_rate(49, steps) == pytest.approx(0.01 / 2)
    assert recipe.learning_rate(99, steps) == pytest.approx(0.01)
    assert recipe.learning_rate(50 * steps - 1, steps) == pytest.approx(0.01)
    assert recipe.learning_rate(50 * steps, steps) == pytest.approx(0.001)
    assert recipe.learning_rate(100 * steps, steps) == pytest.approx(0.0001)
    assert recipe.learning_rate(300 * steps - 1, steps) == pytest.approx(0.00001)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_it_rises_to_lr_and_falls_to_zero(schedule):
    recipe = load_recipe("quick", {"epochs": 3, "lr": 1.0, "warmup_epochs": 1, "schedule": schedule})
    rates = [recipe.learning_rate(step, 10) for step in range(30)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[19] == pytest.approx(0.5)  # half way down
    assert rates[14] == pytest.approx(0.75 if schedule == "linear" else (1 + math.cos(math.pi / 4)) / 2)
    assert rates[29] == pytest.approx(0.0, abs=1e-12)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_gradient_scales_of_each_submodel():
    assert load_recipe("paper").gradient_scales(3, 0.7) == [1, 1, 1]
    constant = load_recipe("paper", {"gradient_scale": (0.5, 0.25)})
    assert constant.gradient_scales(2, 0) == constant.gradient_scales(2, 1) == [0.5, 0.25]
    assert constant.gradient_scales(0, 0.5) == []  # the baseline of the same recipe
    annealed = load_recipe("paper", {"final_scale": (0.2,)})
    assert annealed.gradient_scales(2, 0) == [1, 1]
    assert annealed.gradient_scales(2, 0.5) == pytest.approx([0.6, 0.6])
    assert annealed.gradient_scales(2, 1) == pytest.approx([0.2, 0.2])
    with pytest.raises(
        RecipeError, match="gradient_scale has 2 values for 3 sub-models: give one, or one each"
    ):
        constant.gradient_scales(3, 0)


def test_a_cycle_that_is_all_warmup_does_not_divide_by_zero():
    recipe = load_recipe("quick", {"epochs": 1, "warmup_epochs": 1})
    assert recipe.learning_rate(9, 10) == pytest.approx(recipe.lr)


def test_milestones_behind_the_end():
    assert load_recipe("paper").unreached_milestones() == ()
    assert load_recipe("paper", {"epochs": 100}).unreached_milestones() == (100, 150)
    assert load_recipe("quick").unreached_milestones() == ()


@pytest.mark.parametrize("name", presets())
def test_a_written_recipe_reads_back(tmp_path, name):
    recipe = load_recipe(name, {"seed": 7})
    path = tmp_path / "mine.toml"
    path.write_text(recipe.to_toml())
    assert load_recipe(str(path)) == recipe


def test_extends(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "paper"\nlr = 0.02\nepochs = 10\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\nepochs = 20\n')
    recipe = load_recipe(str(tmp_path / "b.toml"), {"momentum": 0.5})
    assert (recipe.lr, recipe.epochs, recipe.momentum, recipe.batch_size) == (0.02, 20, 0.5, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'extends = "paper"\nlearning_rate = 1',
            "unknown key 'learning_rate': choose from epochs, batch_size",
        ),
        ('extends = "paper"\nlr = -1', "lr = -1: input should be greater than 0"),
        ('extends = "paper"\nlr = nan', "lr = nan: input should be a finite number"),
        ('extends = "paper"\nbatch_size = 0', "batch_size = 0: input should be greater than 0"),
        (
            'extends = "paper"\nschedule = "magic"',
            "schedule = 'magic': input should be 'step'",
        ),
        ('extends = "paper"\nmomentum = 0\nnesterov = true', "nesterov needs a momentum"),
        ('extends = "paper"\nema = 0.9\nbn = "shared"', 'ema needs bn = "private"'),
        ('extends = "paper"\ngradient_scale = [0.5, 0]', "gradient_scale.1 = 0: input should be greater"),
        ('extends = "paper"\ngradient_scale = []', "gradient_scale = []: "),
        ("lr = 0.1", "epochs is missing: set it, or start with extends"),
        ('extends = "paper"\ngamma = 1.5', "gamma = 1.5: input should be less than or equal to 1"),
        ('extends = "paper"\nmomentum = 1', "momentum = 1: input should be less than 1"),
        ('extends = "paper"\nval_split = 1', "val_split = 1: input should be less than 1"),
        ('extends = "paper"\nmilestones = [0]', "milestones.0 = 0: input should be greater than 0"),
        ("x = " + "[" * 100_000, "cannot read recipe"),
        ("extends = 3", "extends takes the name of one recipe, not 3"),
        ('extends = "self.toml"', "recipes extend each other in a circle"),
        ("lr = ", "cannot read recipe"),
        ('extends = "\\u0000"', "cannot read recipe"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    path = tmp_path / "self.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert message in str(caught.value)


SOURCE = '# für Größe\nextends = "paper"\nlr = 0.02\n'


@pytest.mark.parametrize("parent", [False, True])
def test_a_byte_order_mark_of_utf_8_and_line_ends_of_windows_are_read(tmp_path, parent):
    path = tmp_path / "mine.toml"
    path.write_bytes(SOURCE.replace("\n", "\r\n").encode("utf-8-sig"))
    if parent:
        (tmp_path / "child.toml").write_bytes(b'\xef\xbb\xbfextends = "mine.toml"')
        path = tmp_path / "child.toml"
    assert load_recipe(str(path)) == load_recipe("paper", {"lr": 0.02})


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "it is UTF-16: save it as UTF-8"),
        ("utf-32", "it is UTF-32: save it as UTF-8"),
        ("utf-16-le", "it is UTF-16 or UTF-32 without a byte order mark, or no text: save it as UTF-8"),
        ("utf-16-be", "it is UTF-16 or UTF-32 without a byte order mark, or no text: save it as UTF-8"),
        ("latin-1", "byte 0xfc in line 1 is not UTF-8, perhaps Latin-1 or Windows-1252: save it as UTF-8"),
    ],
)
def test_other_encodings_are_named(tmp_path, encoding, message):
    path = tmp_path / "mine.toml"
    path.write_bytes(SOURCE.encode(encoding))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert str(caught.value) == f"cannot read recipe {str(path)!r}: {message}"


def test_unknown_recipe_names_the_presets():
    names = "best, fast, finetune, paper, photos, quick"
    with pytest.raises(RecipeError, match=f"no recipe 'papr': choose {names} or a TOML file"):
        load_recipe("papr")


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("paper").lr = 1.0
    assert isinstance(load_recipe("paper"), Recipe)


def test_the_users_own_weight_decay_beats_the_inherited_one_of_the_baseline(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "paper"\nweight_decay = 1e-4\n')
    assert load_recipe(str(path), baseline=True).weight_decay == 1e-4
    path.write_text('extends = "paper"\nlr = 0.1\n')
    assert load_recipe(str(path), baseline=True).weight_decay == 6e-3
