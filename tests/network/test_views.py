"""A view shares all tensors with the whole network, and is a network of its own in every other respect."""

import copy

import pytest
import torch
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.network.batch_norm import SharedBatchNorm
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.views import with_statistics
from cnsn_cli.task import Task

TASK = Task.plain(classes=7)


def build(bn: str = "private") -> Cnsn:
    return Cnsn(registry.find("resnet20:width=0.25").build(TASK), (1, 7), TASK, bn)


@pytest.mark.parametrize("bn", ["private", "shared"])
def test_all_tensors_are_those_of_the_network(bn):
    network = build(bn)
    tensors = network.state_dict(keep_vars=True)
    for index, model in enumerate(network.models()):
        prefix = f"submodels.{index - 1}."
        for name, tensor in model.state_dict(keep_vars=True).items():
            assert tensor is tensors.get(prefix + name, tensors.get(name)), f"{name} of {model.name}"


def test_no_module_is_one_of_the_network():
    network = build()
    own = set(network.modules())
    for module in network.modules():
        if isinstance(module, SharedBatchNorm):
            own |= set(module.norms)
    for model in network.models():
        assert not own & set(model.modules())
        assert not any(isinstance(module, SharedBatchNorm) for module in model.modules())


def test_a_view_with_other_layers_leaves_the_network():
    network = build().eval()
    images = torch.randn(2, 3, 32, 32)
    before = network(images)
    model = network.model("submodel0")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.Identity())
    assert not torch.equal(model(images), before[1])
    assert all(torch.equal(*pair) for pair in zip(before, network(images), strict=True))


def test_statistics_gathered_by_a_view_are_those_of_the_network():
    """Only the statistics of that model change."""
    network = build().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.model("submodel1")(torch.randn(4, 3, 32, 32))
    changed = {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    own = [name for name in before if name.startswith("submodels.1.") and name.endswith(statistics)]
    assert changed == set(own)


def test_a_norm_with_layers_of_its_own_is_seen_alone():
    """BN layers of timm hold their activation: each model switches the mode of its own copy."""

    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.act = nn.ReLU()

    norm = NormAct(4).train()
    view = with_statistics(norm, copy.deepcopy(norm)).eval()
    assert view.weight is norm.weight
    assert view.running_mean is not norm.running_mean
    assert norm.act.training
    assert not view.act.training
