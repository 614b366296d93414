"""Runs with narrow sub-models: resumed at every step, refused before the first one, or trained alone."""

import json
from itertools import count

import pytest
import torch

from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import ArchitectureError, RecipeError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.metrics import Step
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import resume, train
from tests.conftest import TINY
from tests.several import Stop
from tests.training.test_resume import assert_same_run

EXITS = (1, "@0.5", "4@0.5")
STEPS = 4  # of two epochs


@pytest.fixture
def recipe():
    changes = {"epochs": 2, "batch_size": 24, "lr": 0.02, "crop_padding": 2, "val_split": 0.25, "ema": 0.8}
    return load_recipe("quick", {**changes, "distill": "base", "gradient_scale": (0.5,), "nesterov": True})


def test_it_goes_on_from_every_step(image_folder, tmp_path, recipe):
    train(TINY, EXITS, str(image_folder), recipe, tmp_path / "whole")
    for step in range(1, STEPS + 1):
        numbers = count(1)

        def watch(event: object, step: int = step, numbers: count = numbers) -> None:
            if isinstance(event, Step) and next(numbers) == step:
                raise Stop

        folder = tmp_path / f"{step}"
        with pytest.raises(Stop):
            train(TINY, EXITS, str(image_folder), recipe, folder, save_every="1", watch=watch)
        torch.manual_seed(99)
        resume(folder)
        assert_same_run(folder, tmp_path / "whole")
    assert next(numbers) == STEPS + 1  # the last run was stopped in the last step


def test_the_request_keeps_the_words(image_folder, tmp_path, recipe):
    run = train(TINY, EXITS, str(image_folder), recipe, tmp_path)
    assert read_state(tmp_path / "state.safetensors").request.exits == EXITS
    assert [(m.name, m.drops, m.width) for m in run.models] == [
        ("base", 0, 1.0), ("submodel0", 1, 1.0), ("submodel1", 0, 0.5), ("submodel2", 4, 0.5),
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [pull["name"] for pull in lines[-1]["pulls"]] == ["submodel0", "submodel1", "submodel2"]
    for name in ("submodel1", "submodel2"):  # accuracies of the run are those of detached files
        metadata = detach(tmp_path / "last.safetensors", name, tmp_path / f"{name}.safetensors")
        assert metadata.models[0].accuracy is not None


def test_a_narrow_submodel_alone(cnsn, image_folder, tmp_path):
    words = ("train", "--arch", TINY, "--data", image_folder, "--recipe", "quick", "--epochs", 1)
    assert cnsn(*words, "--drop", "4@0.5", "--out", tmp_path / "both").code == 0
    assert cnsn(*words, "--drop", "@0.5", "--out", tmp_path / "width").code == 0
    both, width = (metadata_in(tmp_path / name / "best.safetensors") for name in ("both", "width"))
    assert (both.arch, both.kind, both.models[0].drops) == ("vgg11:width=0.03125", "detached", 4)
    assert (width.arch, width.kind, width.models[0].name) == ("vgg11:width=0.03125", "network", "base")
    assert isinstance(load(tmp_path / "width" / "best.safetensors"), Cnsn)
    again = cnsn("train", "--resume", tmp_path / "both", "--arch", TINY, "--drop", "4@0.5")
    assert again.code == 0
    assert "is finished" in again.err
    other = cnsn("train", "--resume", tmp_path / "both", "--drop", "4")
    assert "cannot go on with drop 4@0.5 -> 4: start another run" in other.err
    alone = json.loads(cnsn("info", tmp_path / "width" / "best.safetensors", "--json").out)
    plain = cnsn(
        *words, "--arch", "vgg11:width=0.03125", "--exits", "", "--out", tmp_path / "plain", "--json"
    )
    assert json.loads(plain.out)["models"] == alone["models"]


REFUSED = [
    (("--exits", "@0"), 2, "'@0' has no width between 0 and 1"),
    (("--exits", "@1"), 2, "'@1' has no width between 0 and 1"),
    (("--exits", "@1.5"), 2, "'@1.5' has no width between 0 and 1"),
    (("--exits", "@x"), 2, "'@x' is no sub-model: write 7 (without the first 7 convs), @0.5"),
    (("--exits", "7@"), 2, "'7@' is no sub-model"),
    (("--exits", "1,@"), 2, "'@' is no sub-model"),
    (("--drop", "7@"), 2, "'7@' is no sub-model"),
    (("--drop", "@2"), 2, "'@2' has no width between 0 and 1"),
    (("--drop", "@0.99"), 1, "has the channels of vgg11:width=0.0625: give a smaller width"),
    (("--drop", "9@0.5"), 1, "9 is no detach point: choose from 1, 2, 3, 4, 5, 6, 7"),
    (("--exits", "@0.5,@0.5"), 1, "exits must fall in width, ascend in depth, without repeats"),
    (("--exits", "@0.5,1"), 1, "not @0.5,1: use 1,@0.5"),
    (("--exits", "4@0.5,@0.5"), 1, "not 4@0.5,@0.5: use @0.5,4@0.5"),
    (("--exits", "9@0.5"), 1, "9 is no detach point: choose from 1, 2, 3, 4, 5, 6, 7"),
    (("--exits", "@0.99"), 1, "has the channels of vgg11:width=0.0625: give a smaller width"),
    (("--exits", "@0.5,@0.49"), 1, "widths 0.5 and 0.49 give vgg11:width=0.0625 the same channels"),
    (("--exits", "@0.5", "--bn", "shared"), 1, 'bn = "shared" and the width @0.5 exclude each other'),
]


@pytest.mark.parametrize(("words", "code", "message"), REFUSED)
def test_bad_words(cnsn, image_folder, tmp_path, words, code, message):
    usual = ("train", "--arch", TINY, "--data", image_folder, "--recipe", "quick", "--out", tmp_path / "run")
    result = cnsn(*usual, *words)
    assert result.code == code
    assert message in " ".join(result.err.replace("│", " ").split())
    assert code == 2 or result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("torchvision:densenet121", "torchvision:densenet121 has no option that narrows it"),
        ("torchvision:alexnet", "has no option that narrows it: give detach points alone"),
        ("nowhere", "unknown architecture 'nowhere'"),
    ],
)
def test_architectures_without_widths(cnsn, image_folder, tmp_path, arch, message):
    words = ("--data", image_folder, "--image-size", 64, "--recipe", "quick", "--out", tmp_path / "run")
    for cut in (("--exits", "@0.5"), ("--drop", "@0.5")):
        result = cnsn("train", "--arch", arch, *cut, *words)
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert message in result.err


def test_a_frozen_base_has_no_narrow_submodels(cnsn, checkpoint, tmp_path):
    result = cnsn("train", "--freeze-base", checkpoint, "--exits", "1,@0.5", "--out", tmp_path / "run")
    assert result.code == 1
    assert "--freeze-base and the width @0.5 exclude each other" in result.err
    assert result.err.count("\n") == 1


def test_a_network_whose_channels_change_their_meaning(distribution, image_folder, tmp_path, recipe):
    source = """
import torch
from torch import nn
from cnsn_cli import Backbone
class Twice(nn.Module):
    def forward(self, x):
        return torch.cat([x, x.relu()], 1)
def net(num_classes=10, width=1.0):
    c = round(8 * width)
    first = nn.Sequential(nn.Conv2d(3, c, 3, 2), Twice())
    units = nn.Sequential(first, nn.Conv2d(2 * c, c, 3, 2))
    return Backbone(units, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 2)), (1, 1))
net.narrows = "width"
"""
    distribution("twicenet", {"twicenet": source}, {"twicenet": "twicenet:net"})
    with pytest.raises(ArchitectureError, match="channels are concatenated, shuffled, grouped"):
        train("twicenet", ("@0.5",), str(image_folder), recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


PLUGIN = """
from torch import nn
from cnsn_cli import Backbone
def net(num_classes=10, width=1.0):
    c = int(16 * width)
    convs = nn.Conv2d(3, c, 3, 2), nn.Conv2d(c, c, 3, 2, groups=GROUPS)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 2))
    return Backbone(nn.Sequential(*convs), head, (1, 1))
net.narrows = "width"
"""


@pytest.mark.parametrize(
    ("groups", "words", "message"),
    [
        ("1", ("@0.01",), "leaves no channel in units.0.weight: give a larger width"),
        ("2 if width < 0.6 else 1", ("@0.75", "@0.5"), "channels are concatenated, shuffled, grouped"),
        ("2", ("@0.5",), "channels are concatenated, shuffled, grouped"),
    ],
)
def test_every_width_is_checked(distribution, image_folder, tmp_path, recipe, cnsn, groups, words, message):
    source = PLUGIN.replace("GROUPS", groups)
    distribution("groupnet", {"groupnet": source}, {"groupnet": "groupnet:net"})
    for run in ({"exits": words}, {"exits": (), "drop": words[-1]}):
        with pytest.raises(ArchitectureError, match=message.replace(".", r"\.")):
            train("groupnet", data=str(image_folder), recipe=recipe, out=tmp_path / "run", **run)
    planned = cnsn("mac", "--arch", "groupnet", "--exits", ",".join(words))
    assert message in planned.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("exits", [7, "@0.5", None])
def test_exits_are_a_list(image_folder, tmp_path, recipe, exits):
    with pytest.raises(RecipeError, match=r"this run: exits: Input should be a valid tuple"):
        train(TINY, exits, str(image_folder), recipe, tmp_path)
