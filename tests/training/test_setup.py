"""What else can be trained: one sub-model alone, or new sub-models on a frozen base-model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from sklearn.model_selection import train_test_split
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.tracing.units import traced
from cnsn_cli.data.datasets import Dataset
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.errors import CheckpointError, DataError, RecipeError
from cnsn_cli.files.checkpoint import load, save
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.building import build_network
from cnsn_cli.training.description import describe
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.setup import split_off
from tests.commands.test_cli import one_line
from tests.conftest import TINY, saved
from tests.training.test_resume import Stop, assert_same_run, stop_after

RESNET = "resnet20:width=0.25"


def base_tensors(path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if not name.startswith("submodels")}


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5, "distill": "base", "weight_decay": 0.1}])
def test_a_frozen_base_stays_bit_identical_and_its_submodels_learn(
    image_folder, checkpoint, tmp_path, quick, changes
):
    recipe = quick.model_copy(update={"epochs": 3, **changes})
    run = train(TINY, (2, 6), str(image_folder), recipe, tmp_path, freeze_base=checkpoint)
    before = base_tensors(checkpoint)
    for name in ("best", "last"):
        after = base_tensors(tmp_path / f"{name}.safetensors")
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
    assert [model.drops for model in run.models] == [0, 2, 6]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["results"][0] == lines[2]["results"][0]  # the base-model is unchanged
    for first, last in list(zip(lines[0]["train"], lines[2]["train"], strict=True))[1:]:
        assert last["loss"] < first["loss"]


class Counting(nn.Module):
    """A layer that is not BN, with a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(()))

    def forward(self, features):
        if self.training:
            self.running_mean += 1
        return features


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4, track_running_stats=True), Counting()])
def test_buffers_of_other_layers_are_frozen_too(norm):
    """The base-model and the sub-models share such buffers."""
    layers = (nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    task = Task.plain(classes=4, image_size=16)
    network = Cnsn(traced(nn.Sequential(*layers), task), (1,), task)
    for frozen in (False, True):
        before = norm.running_mean.clone()
        network.train()(torch.randn(2, 3, 16, 16))
        assert torch.equal(norm.running_mean, before) == frozen
        network.freeze_base()


def test_a_base_can_be_a_detached_file_and_names_its_architecture(cnsn, image_folder, checkpoint, tmp_path):
    base, out = tmp_path / "base.safetensors", tmp_path / "run"
    cnsn("detach", checkpoint, "--submodel", "base", "-o", base)
    words = ("--exits", "3", "--data", image_folder, "--recipe", "quick", "--epochs", 1, "--out", out)
    result = cnsn("train", "--freeze-base", base, *words, "--json")
    assert result.code == 0, result.err
    assert [model["drops"] for model in json.loads(result.out)["models"]] == [0, 3]
    before, after = load_file(base), base_tensors(out / "last.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert load(out / "last.safetensors").task == load(base).task
    # The card shows no command, because another run trained the base-model.
    assert "cnsn train" not in cnsn("card", out / "last.safetensors").out


def test_a_frozen_base_names_its_data(cnsn, image_folder, tmp_path):
    base, out = tmp_path / "base.safetensors", tmp_path / "run"
    photos = shutil.copytree(image_folder, tmp_path / "photos")
    small = Task(("bright", "dark"), 16, 3, (0.5,) * 3, (0.5,) * 3)  # of 16 pixels a side, the photos have 32
    saved(base, build_network(registry.find(RESNET), (3,), small, load_recipe("quick")), RESNET, str(photos))
    words = ("train", "--freeze-base", base, "--exits", 3, "--recipe", "quick", "--epochs", 1)
    done = cnsn(*words, "--out", out)
    assert done.code == 0, done.err
    content = json.loads(cnsn("info", out / "best.safetensors", "--json").out)
    assert (content["data"], content["task"]["image_size"]) == (str(photos), 16)
    photos.rename(tmp_path / "elsewhere")
    message = f"{base} was trained on {photos}, and there is no such folder: give --data"
    assert message in one_line(cnsn(*words, "--out", tmp_path / "other"))
    moved = cnsn(*words, "--out", tmp_path / "other", "--data", tmp_path / "elsewhere")
    assert moved.code == 0, moved.err


def test_a_frozen_base_that_names_no_data(cnsn, tmp_path):
    base, task = tmp_path / "base.safetensors", Task.plain(classes=2)
    network = build_network(registry.find(RESNET), (3,), task, load_recipe("quick"))
    metadata = describe(network, registry.find(RESNET), "digits", load_recipe("quick"))
    save(base, network, metadata.model_copy(update={"data": None}))
    result = cnsn("train", "--freeze-base", base, "--exits", 3, "--out", tmp_path / "run")
    assert one_line(result) == f"{base} does not name its training data: give --data"
    assert not (tmp_path / "run").exists()


def test_a_frozen_base_names_its_channels(cnsn, image_folder, tmp_path):
    base, grey = tmp_path / "base.safetensors", Task(("bright", "dark"), 32, 1, (0.5,), (0.5,))
    network = build_network(registry.find(RESNET), (3,), grey, load_recipe("quick"))
    saved(base, network, RESNET, str(image_folder))
    words = ("--freeze-base", base, "--exits", 3, "--recipe", "quick", "--epochs", 1, "--batch-size", 8)
    done = cnsn("train", *words, "--out", tmp_path / "run")
    assert done.code == 0, done.err


def test_a_run_on_a_frozen_base_goes_on(image_folder, checkpoint, tmp_path, quick):
    recipe = quick.model_copy(update={"epochs": 2, "ema": 0.5})
    train(TINY, (2,), str(image_folder), recipe, tmp_path / "whole", freeze_base=checkpoint)
    with pytest.raises(Stop):
        train(
            TINY,
            (2,),
            str(image_folder),
            recipe,
            tmp_path / "cut",
            freeze_base=checkpoint,
            watch=stop_after(1),
        )
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_bases_that_cannot_be_frozen(cnsn, image_folder, checkpoint, tmp_path, quick):
    small, folded = tmp_path / "small.safetensors", tmp_path / "folded.safetensors"
    cnsn("detach", checkpoint, "--submodel", 0, "-o", small)
    cnsn("detach", checkpoint, "--submodel", "base", "--fold-bn", "-o", folded)

    def run(base, arch=TINY, exits=(2,), recipe=quick, data=str(image_folder)):
        train(arch, exits, data, recipe, tmp_path / "run", freeze_base=base)

    with pytest.raises(CheckpointError, match="holds submodel0 alone: --freeze-base takes a whole network"):
        run(small)
    with pytest.raises(CheckpointError, match="holds a base-model with folded BN"):
        run(folded)
    with pytest.raises(CheckpointError, match=r"holds vgg11:width=0.0625, not vgg11: leave out --arch"):
        run(checkpoint, arch="vgg11")
    with pytest.raises(RecipeError, match="--freeze-base trains sub-models only: give --exits"):
        run(checkpoint, exits=())
    with pytest.raises(RecipeError, match='bn = "shared" changes the BN statistics of a frozen base-model'):
        run(checkpoint, recipe=quick.model_copy(update={"bn": "shared"}))
    with pytest.raises(
        DataError, match=r"digits has classes \('0', .*, .* was trained on \('bright', 'dark'\)"
    ):
        run(checkpoint, data="digits")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step_down", ["patch", "stem"])
def test_a_submodel_trained_alone(cnsn, image_folder, tmp_path, step_down):
    words = ("--arch", TINY, "--data", image_folder, "--recipe", "quick", "--epochs", 4, "--lr", 0.01)
    words += ("--batch-size", 8, "--step-down", step_down, "--out", tmp_path / "run")
    result = cnsn("train", "--drop", 4, *words, "--json")
    assert result.code == 0, result.err
    (model,) = json.loads(result.out)["models"]
    assert (model["name"], model["drops"]) == ("submodel0", 4)
    assert model["accuracy"] >= 0.9
    path = tmp_path / "run" / "best.safetensors"
    assert not any(name.startswith(("units.0.", "submodels.")) for name in load_file(path))
    evaluated = json.loads(cnsn("eval", path, "--json").out)["models"]
    assert evaluated[0]["accuracy"] == model["accuracy"]
    assert evaluated[0]["loss"] == model["loss"]
    assert "trained alone" in cnsn("info", path).out
    card = cnsn("card", path).out
    assert f"cnsn train --arch {TINY} --drop 4 --data" in card
    assert "detached from" not in card
    beside = json.loads(
        cnsn("mac", "--arch", TINY, "--exits", "4", "--classes", 2, "--step-down", step_down, "--json").out
    )
    assert {key: model[key] for key in ("macs", "parameters")} == {
        key: beside["models"][1][key] for key in ("macs", "parameters")
    }


def test_a_run_of_one_submodel_goes_on(image_folder, tmp_path, quick):
    recipe = quick.model_copy(update={"epochs": 2, "ema": 0.9})
    train(TINY, (), str(image_folder), recipe, tmp_path / "whole", drop=4)
    with pytest.raises(Stop):
        train(TINY, (), str(image_folder), recipe, tmp_path / "cut", drop=4, watch=stop_after(1))
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arch", TINY), "give --arch and --exits, --arch and --drop, or --resume"),
        (("--arch", TINY, "--exits", "1", "--drop", "2"), "give --arch and --exits"),
        (("--drop", "2"), "give --arch and --exits"),
        (("--arch", TINY, "--drop", "2", "--freeze-base", "x"), "there is no base-model to freeze"),
    ],
)
def test_options_that_do_not_go_together(cnsn, words, message):
    result = cnsn("train", *words)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())


def test_dropping_everything_is_refused(cnsn, image_folder):
    result = cnsn("train", "--arch", TINY, "--drop", 8, "--data", image_folder)
    assert result.code == 1
    assert result.err.startswith("cnsn: 8 is no detach point")


def test_a_class_with_a_single_image_cannot_be_held_out(cnsn, image_folder, tmp_path):
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(image_folder, folder)
    for image in sorted((folder / "train" / "dark").iterdir())[1:]:
        image.unlink()
    result = cnsn(
        "train", "--arch", TINY, "--exits", 1, "--data", folder, "--val-split", 0.2, "--recipe", "quick",
        "--out", out,
    )  # fmt: skip
    assert one_line(result).startswith("class 'dark' has a single training image, and val_split = 0.2")
    assert not out.exists()


@pytest.mark.parametrize(
    ("counts", "share", "message"),
    [
        ((16, 1), 0.2, "class 'b' has a single training image, and val_split = 0.2 holds out images of each"),
        ((1, 16, 1), 0.5, r"class 'a' \(and 1 more\) has a single training image"),
        (
            (32, 32),
            0.001,
            "val_split = 0.001 of 64 images holds out 1, fewer than the 2 classes: give 0.0313 to 0.9687",
        ),
        (
            (4, 4),
            0.95,
            "leaves for training 0, fewer than the 2 classes: give 0.25 to 0.75, or --val-split 0",
        ),
        ((2, 2, 2, 2), 0.9, "leaves for training 0, fewer than the 4 classes: give 0.5 to 0.5"),
    ],
)
def test_val_splits_that_cannot_be(quick, counts, share, message):
    """The images are counted by hand: scikit-learn rounds the held-out images up."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    split = MemorySplit(torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8), labels)
    task = replace(Task.plain(len(counts)), class_names=tuple("abcd"[: len(counts)]))
    recipe = quick.model_copy(update={"val_split": share})
    with pytest.raises(RecipeError, match=message):
        split_off(Dataset(split, split, task), recipe)


@pytest.mark.parametrize("counts", [(2, 2), (16, 2), (3, 4, 5), (30, 2)])
def test_a_val_split_that_passes_the_checks_is_made(quick, counts):
    """scikit-learn splits what the checks let pass, and refuses what they refuse."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    split = MemorySplit(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    for share in (0.01, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.75, 0.9, 0.99):
        recipe = quick.model_copy(update={"val_split": share})
        try:
            train_test_split(labels, test_size=share, stratify=labels, random_state=0)
        except ValueError:
            with pytest.raises(RecipeError, match="fewer than the"):
                split_off(Dataset(split, split, Task.plain(len(counts))), recipe)
        else:
            fitted, held_out = split_off(Dataset(split, split, Task.plain(len(counts))), recipe)
            assert len(fitted) + len(held_out) == sum(counts)


def test_a_single_class_is_refused(cnsn, image_folder, tmp_path):
    folder, out = tmp_path / "data", tmp_path / "run"
    for split in ("train", "test"):
        shutil.copytree(image_folder / split / "dark", folder / split / "dark")
    result = cnsn("train", "--arch", TINY, "--exits", 1, "--data", folder, "--recipe", "quick", "--out", out)
    expected = f"{folder} has a single class, 'dark': a classifier needs at least two"
    assert one_line(result) == expected
    assert not out.exists()


@pytest.mark.parametrize(("warmup", "warned"), [(2, True), (1, False)])
def test_a_warm_up_beyond_the_end_is_a_warning(cnsn, image_folder, tmp_path, warmup, warned):
    words = ("--arch", TINY, "--exits", "", "--data", image_folder, "--recipe", "quick", "--epochs", 1)
    words += ("--lr", 0.01, "--warmup-epochs", warmup, "--out", tmp_path / "run")
    done = cnsn("train", *words)
    assert done.code == 0, done.err
    text = f"warning: training ends with epoch 1, within the warm-up of {warmup} epochs: the learning rate"
    assert (text in " ".join(done.err.split())) == warned
