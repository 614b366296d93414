import pytest
import torch
from torch import nn

from cnsn_cli.backbones.meta import run_blank, shared_copy


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()), nn.Sequential())


def test_a_copy_shares_tensors_and_no_module():
    original = network()
    copied = shared_copy(original)
    assert [name for name, _ in copied.named_modules()] == [name for name, _ in original.named_modules()]
    assert not set(copied.modules()) & set(original.modules())
    tensors = original.state_dict(keep_vars=True)
    assert all(tensors[name] is tensor for name, tensor in copied.state_dict(keep_vars=True).items())
    copied.eval()
    assert all(module.training for module in original.modules())


def test_a_copy_with_another_module_in_it():
    original, other = network(), nn.Identity()
    copied = shared_copy(original, lambda module: other if isinstance(module, nn.BatchNorm2d) else None)
    assert copied[1][0] is other
    assert isinstance(original[1][0], nn.BatchNorm2d)
    assert copied[0].weight is original[0].weight
    assert shared_copy(original, lambda module: other) is other


def test_an_attribute_that_is_no_module_stays_none():
    original = network()
    original.register_module("shortcut", None)
    assert shared_copy(original).shortcut is None


@pytest.mark.parametrize("training", [True, False])
def test_shapes_are_found_without_a_trace(training):
    """BatchNorm refuses one value per channel in training, so shapes are computed in eval mode."""
    original = network().train(training)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    found = run_blank(original, torch.empty(1, 3, 3, 3, device="meta"))
    assert found.is_meta
    assert found.shape == (1, 4, 1, 1)
    assert all(module.training is training for module in original.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
