import json

import pytest
import torch
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.data.pixels import normalise
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.network import recalibration
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.recalibration import recalibrated
from cnsn_cli.task import Task
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import train
from tests.conftest import TINY


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return MemorySplit(pixels, torch.zeros(1000, dtype=torch.long))


def network(bn: str = "private") -> Cnsn:
    torch.manual_seed(0)
    return Cnsn(registry.find(TINY).build(Task.plain()), (1, 4), Task.plain(), bn)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_first_layer_gets_the_averages_of_its_batches(images):
    model = network().base
    (result,) = recalibrated([model], images, 3)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:600]
    batches = normalise(images.pixels[order], model.task).view(3, 200, 3, 32, 32)
    features = [model.units[0][0](batch).detach() for batch in batches]
    means = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variances = torch.stack([f.transpose(0, 1).flatten(1).var(1) for f in features]).mean(0)
    torch.testing.assert_close(norms(result)[0].running_mean, means)
    torch.testing.assert_close(norms(result)[0].running_var, variances)


def test_the_order_of_batches_does_not_matter(images, monkeypatch):
    (forwards,) = recalibrated([network().base], images, 5)
    calibration_images = recalibration.calibration_images
    monkeypatch.setattr(
        recalibration, "calibration_images", lambda *words: reversed(list(calibration_images(*words)))
    )
    (backwards,) = recalibrated([network().base], images, 5)
    for one, other in zip(norms(forwards), norms(backwards), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.running_var, other.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bn", ["private", "shared"])
def test_models_get_statistics_of_their_own_and_the_network_keeps_its(images, bn):
    whole = network(bn)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    base, _, last = recalibrated(whole.models(), images, 2)
    assert not torch.equal(norms(base)[-1].running_mean, norms(last)[-1].running_mean)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def test_eval_and_detach_recalibrate(cnsn, image_folder, tmp_path):
    """On a network with shared statistics, which are poor, `detach` gives the loss that `eval` gave."""
    recipe = load_recipe("quick", {"epochs": 2, "lr": 0.02, "batch_size": 8, "bn": "shared"})
    train(TINY, (1, 4), str(image_folder), recipe, tmp_path / "run")
    path, small = tmp_path / "run" / "last.safetensors", tmp_path / "small.safetensors"
    before = json.loads(cnsn("eval", path, "--json").out)["models"]
    after = json.loads(cnsn("eval", path, "--recalibrate", 1, "--json").out)["models"]
    assert [model["loss"] for model in before] != [model["loss"] for model in after]
    result = cnsn("detach", path, "--submodel", 1, "--recalibrate", 1, "-o", small, "--json")
    assert "accuracy" not in json.loads(result.out)["models"][0]
    assert json.loads(cnsn("eval", small, "--json").out)["models"] == after[2:]
    assert "recomputed from 1 batch of images" in cnsn("info", small).out
    folded = tmp_path / "folded.safetensors"
    cnsn("detach", path, "--submodel", 1, "--recalibrate", 1, "--fold-bn", "-o", folded)
    (model,) = json.loads(cnsn("eval", folded, "--json").out)["models"]
    assert model["loss"] == pytest.approx(after[2]["loss"], rel=1e-4)
    task = load(small).task
    assert task == load_dataset(str(image_folder)).task


def test_a_folded_model_has_nothing_to_recalibrate(cnsn, checkpoint, tmp_path, images):
    cnsn("detach", checkpoint, "--submodel", "base", "--fold-bn", "-o", tmp_path / "folded.safetensors")
    with pytest.raises(CheckpointError, match="base has no BN layers to recalibrate: leave out --recalib"):
        recalibrated([load(tmp_path / "folded.safetensors")], images, 1)


def test_dropout_is_off_and_no_image_is_a_batch_of_its_own(images):
    model = network().base
    model.units[0].append(nn.Dropout(0.5))
    rest = images.take(torch.arange(201))
    first, second = (norms(recalibrated([model], rest, 5)[0]) for _ in range(2))
    assert all(torch.equal(a.running_mean, b.running_mean) for a, b in zip(first, second, strict=True))
    assert first[0].num_batches_tracked == 2
    order = torch.randperm(201, generator=torch.Generator().manual_seed(0))
    halves = normalise(rest.pixels[order], model.task).split([101, 100])
    means = torch.stack([model.units[0][0](half).detach().mean((0, 2, 3)) for half in halves]).mean(0)
    torch.testing.assert_close(first[0].running_mean, means)
    assert not any(module.training for module in recalibrated([model], rest, 5)[0].modules())


def test_detach_prints_accuracy_before_and_after(cnsn, checkpoint, tmp_path):
    """The same accuracies as those of `cnsn eval` without and with --recalibrate."""
    evals = [("eval", checkpoint, "--json"), ("eval", checkpoint, "--recalibrate", 1, "--json")]
    before, after = (json.loads(cnsn(*words).out)["models"] for words in evals)
    words = ("detach", checkpoint, "--all", "--recalibrate", 1, "-o", tmp_path / "models")
    found = json.loads(cnsn(*words, "--json").out)["recalibrated"]
    names = ("base", "submodel0", "submodel1")
    assert [(r["name"], r["images"]) for r in found] == [(name, 16) for name in names]
    assert [r["before"] for r in found] == [model["accuracy"] for model in before]
    assert [r["after"] for r in found] == [model["accuracy"] for model in after]
    line = f"recalibrated: base: accuracy {found[0]['before']:.2%} before, {found[0]['after']:.2%} after"
    assert line in cnsn(*words, "--force").out
