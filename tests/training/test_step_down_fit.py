"""Step-down convs that start as close to the base-model's features as a conv can come."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnsn_cli.backbones import registry
from cnsn_cli.data.pixels import normalise
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training import step_down_fit
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import train
from cnsn_cli.training.step_down_fit import fit_step_downs
from tests.commands.test_cli import one_line
from tests.conftest import TINY, built

TASK = Task.plain(image_size=32)
ARCH = "resnet20:width=0.25"


@pytest.fixture(scope="module")
def split() -> MemorySplit:
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randint(256, (60, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return MemorySplit(coarse.repeat_interleave(8, 2).repeat_interleave(8, 3), torch.zeros(60, dtype=int))


def network(step_down: str = "patch") -> Cnsn:
    torch.manual_seed(1)
    return Cnsn(registry.find(ARCH).build(TASK), (9, 15), TASK, step_down=step_down)


def features(network: Cnsn, unit: int, images: Tensor) -> Tensor:
    """What the base-model hands to `unit`."""
    with torch.no_grad():
        return nn.Sequential(*network.eval().base.units[:unit])(images)


def rows_and_targets(network: Cnsn, number: int, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares problem of a patch: a row of pixels and a 1, a row of features, for each place."""
    private = network.submodels[number]
    conv = private.step_down[0]
    windows = F.unfold(images, conv.kernel_size, stride=conv.stride).transpose(1, 2).flatten(0, 1)
    targets = features(network, private.first_unit, images).permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([windows, torch.ones(len(windows), 1)], 1).double().numpy(), targets.double().numpy()


@pytest.mark.parametrize("number", [0, 1])
def test_no_conv_comes_closer(split, number, monkeypatch):
    monkeypatch.setattr(step_down_fit, "RIDGE", 1e-9)
    ours = network()
    fit_step_downs(ours, split)
    images = normalise(split.pixels, TASK)
    rows, targets = rows_and_targets(ours, number, images)
    solution, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    best = ((rows @ solution - targets) ** 2).mean()
    conv = ours.submodels[number].step_down[0]
    found = conv(images).detach().permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    assert ((found - targets) ** 2).mean() == pytest.approx(best, rel=1e-3)
    assert best < 0.9 * targets.var()


def test_bn_begins_as_the_identity(split):
    ours = network()
    fit_step_downs(ours, split)
    images = normalise(split.pixels, TASK)
    for private in ours.submodels:
        conv, norm, _ = private.step_down
        expected = conv(images)
        torch.testing.assert_close(norm.train()(expected), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(norm.eval()(expected), expected, rtol=1e-2, atol=1e-2)


def test_of_a_stem_the_last_conv_is_fitted(split):
    """The convs before stay as they were drawn, and the features come closer than with random weights."""
    drawn, fitted = network("stem"), network("stem")
    fit_step_downs(fitted, split)
    images = normalise(split.pixels, TASK)
    assert [len(private.step_down) for private in drawn.submodels] == [1, 2]
    for before, after in zip(drawn.submodels, fitted.submodels, strict=True):
        target = features(drawn, before.first_unit, images)
        errors = [F.mse_loss(p.step_down.train()(images), target).item() for p in (before, after)]
        assert errors[1] < 0.5 * errors[0]
        for old, new in zip(before.step_down[:-1], after.step_down[:-1], strict=True):
            assert torch.equal(old[0].weight, new[0].weight)


def test_the_base_model_and_the_mode_stay(split):
    before, after = network(), network().train()
    fit_step_downs(after, split)
    state = after.state_dict()
    for name, tensor in before.state_dict().items():
        if "step_down" not in name:
            assert torch.equal(state[name], tensor), name
    assert after.training
    assert after.base.units[0].training


def test_a_narrow_sub_model_is_fitted_to_the_leading_channels(split):
    ours = built(TINY, (2, "2@0.5"), TASK)
    fit_step_downs(ours, split)
    wide, narrow = (private.step_down for private in ours.submodels)
    half = narrow[0].out_channels
    assert half == wide[0].out_channels // 2
    torch.testing.assert_close(narrow[0].weight, wide[0].weight[:half])
    torch.testing.assert_close(narrow[0].bias, wide[0].bias[:half])


def test_no_batch_has_a_single_image(split):
    """Of 51 images, batches of 50 would leave one, and BN refuses one value a channel."""
    few = split.take(torch.arange(51))
    fit_step_downs(built("torchvision:resnet18", (15,), TASK), few)


def test_a_network_without_step_down_convs(split):
    fit_step_downs(built(TINY, ("@0.5",), TASK), split)
    fit_step_downs(built(TINY, (), TASK), split)


@pytest.mark.parametrize("way", ["init", "freeze_base", "drop"])
def test_a_run_starts_from_the_fit(way, image_folder, checkpoint, quick, tmp_path, monkeypatch):
    """In every way to start with weights, fitted sub-models begin better than random ones."""
    exits, given = (4,), {"init": checkpoint}
    if way == "freeze_base":
        given = {"freeze_base": checkpoint}
    if way == "drop":
        exits, given = (), {"init": checkpoint, "drop": 4}
    losses = {}
    for first in ("random", "fit"):
        recipe = quick.model_copy(update={"step_down_init": first, "lr": 1e-9})
        run = train(TINY, exits, str(image_folder), recipe, tmp_path / first, **given)
        losses[first] = run.models[-1].loss
    assert losses["fit"] < losses["random"]


def test_fit_and_pretrained_lr_need_pretrained_weights(cnsn, image_folder, tmp_path):
    words = ("train", "--arch", TINY, "--exits", "1", "--data", image_folder, "--out", tmp_path / "run")
    message = one_line(cnsn(*words, "--recipe", "quick", "--step-down-init", "fit"))
    assert message == (
        "step_down_init = fit is about pretrained weights, and this run starts at random: give --pretrained, "
        "--init or --freeze-base, or --step-down-init random"
    )
    message = one_line(cnsn(*words, "--recipe", "finetune"))
    assert "pretrained_lr = 0.1 is about pretrained weights" in message
    assert message.endswith("or --pretrained-lr 1")
    assert not (tmp_path / "run").exists()


def test_the_recipe_for_photos_takes_photos_only(cnsn, tmp_path):
    words = ("--arch", TINY, "--exits", "1", "--recipe", "photos", "--out", tmp_path / "run")
    assert "digits is an array of small images" in one_line(cnsn("train", *words, "--data", "digits"))
    assert load_recipe("photos").crop == "resized"
