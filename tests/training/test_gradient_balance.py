"""Gradient scales, and the report on gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.data.pixels import normalise
from cnsn_cli.errors import RecipeError
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY, built


@pytest.fixture(scope="module")
def dataset(image_folder):
    return load_dataset(str(image_folder))


def network(dataset, exits=(1, 4)) -> Cnsn:
    return built(TINY, exits, dataset.task)


def one_step(dataset, exits=(1, 4), **changes: object) -> tuple[Trainer, Epoch]:
    """Plain SGD on one batch of four images."""
    plain = {"epochs": 1, "batch_size": 4, "milestones": (), "warmup_epochs": 0, "momentum": 0.0}
    recipe = load_recipe(
        "paper", {**plain, "weight_decay": 0.0, "crop_padding": 0, "flip": "none", **changes}
    )
    split = dataset.train.take(torch.arange(0, 64, 16))
    trainer = Trainer(network(dataset, exits), split, split, recipe)
    (epoch,) = [event for event in trainer.run() if isinstance(event, Epoch)]
    return trainer, epoch


def losses(dataset, exits=(1, 4)) -> tuple[Cnsn, list[torch.Tensor]]:
    reference = network(dataset, exits).train()
    split = dataset.train.take(torch.arange(0, 64, 16))
    logits = reference(normalise(split.pixels, dataset.task))
    return reference, [F.cross_entropy(scores, split.labels) for scores in logits]


def test_scales_weigh_the_shared_units_and_not_the_step_downs(dataset):
    trainer, _ = one_step(dataset, gradient_scale=(0.5, 0.25), lr=0.01)
    reference, (base, first, second) = losses(dataset)
    names, parameters = zip(*reference.named_parameters(), strict=True)
    scaled = torch.autograd.grad(
        base + (0.5 * first + 0.25 * second) / 2, parameters, retain_graph=True, allow_unused=True
    )
    plain = torch.autograd.grad(base + (first + second) / 2, parameters)
    moved = dict(trainer.network.named_parameters())
    for name, before, shared, own in zip(names, parameters, scaled, plain, strict=True):
        gradient = own if "step_down" in name else shared
        torch.testing.assert_close(moved[name], before - 0.01 * gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("exits", "archs", "units"),
    [((1, 4), (TINY, TINY), (1, 4)), (("@0.5", "4@0.5"), ("vgg11:width=0.03125",) * 2, (0, 4))],
)
def test_the_report_on_gradients(dataset, exits, archs, units):
    """Of a narrow sub-model and the base-model, the gradients in the narrow network's tensors count."""
    _, epoch = one_step(dataset, exits, gradient_scale=(0.5, 0.25), lr=1e-6)
    reference, (base, *others) = losses(dataset, exits)
    parameters = dict(reference.named_parameters())
    assert [pull.name for pull in epoch.pulls] == ["submodel0", "submodel1"]
    assert [pull.scale for pull in epoch.pulls] == [0.5, 0.25]
    for pull, loss, arch, first_unit in zip(epoch.pulls, others, archs, units, strict=True):
        backbone = registry.find(arch).build(dataset.task)
        own = torch.nn.ModuleDict({"units": backbone.units, "head": backbone.head})
        kept = {
            name: tuple(map(slice, parameter.shape))
            for name, parameter in own.named_parameters()
            if name.startswith("head.") or int(name.split(".")[1]) >= first_unit
        }
        mine, theirs = (
            torch.cat(
                [
                    torch.autograd.grad(source, parameters[name], retain_graph=True)[0][block].flatten()
                    for name, block in kept.items()
                ]
            )
            for source in (loss, base)
        )
        assert pull.norm == pytest.approx(math.sqrt((mine**2).sum()), rel=1e-4)
        assert pull.base_norm == pytest.approx(math.sqrt((theirs**2).sum()), rel=1e-4)
        assert pull.cosine == pytest.approx(F.cosine_similarity(mine, theirs, dim=0).item(), abs=1e-4)


def test_a_scale_for_a_submodel_that_is_not_there(dataset):
    with pytest.raises(RecipeError, match="gradient_scale has 3 values for 2 sub-models"):
        one_step(dataset, gradient_scale=(1.0, 0.5, 0.25))
