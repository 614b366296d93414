"""A BN layer of several models: one normalisation for all of them is that of each model by itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cnsn_cli.network.batch_norm import SharedBatchNorm, fresh_statistics
from cnsn_cli.network.views import with_statistics

CHANNELS, MODELS = 5, 3


def shared(norm: nn.Module) -> SharedBatchNorm:
    views = [with_statistics(norm, fresh_statistics(norm)) for _ in range(MODELS - 1)]
    return SharedBatchNorm([norm, *views], range(MODELS))


def result(layer: SharedBatchNorm, forward, features: Tensor) -> dict[str, Tensor]:
    features = features.clone().requires_grad_()
    output = forward(features)
    (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
    held = {
        f"{i}.{name}": buffer for i, norm in enumerate(layer.norms) for name, buffer in norm.named_buffers()
    }
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": output, "features": features.grad, **gradients, **held}


@pytest.mark.parametrize(
    ("kind", "size", "more"),
    [
        (nn.BatchNorm1d, (), {}),
        (nn.BatchNorm1d, (7,), {}),
        (nn.BatchNorm2d, (4, 3), {"momentum": 0.3, "eps": 0.01}),
        (nn.BatchNorm2d, (4, 3), {"affine": False}),
        (nn.BatchNorm3d, (2, 3, 2), {}),
    ],
)
def test_grouped_is_slice_by_slice(kind, size, more):
    torch.manual_seed(0)
    plain = shared(kind(CHANNELS, dtype=torch.float64, **more))
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    grouped = shared(copy.deepcopy(plain.norms[0]))
    features = torch.randn(MODELS * 4, CHANNELS, *size, dtype=torch.float64)
    assert grouped.can_group()
    expected = result(plain, plain, features)
    for name, tensor in result(grouped, grouped.grouped, features).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_grouped_keeps_the_memory_format():
    features = torch.randn(MODELS * 4, CHANNELS, 3, 3).contiguous(memory_format=torch.channels_last)
    normalised = shared(nn.BatchNorm2d(CHANNELS)).grouped(features.bfloat16())
    assert normalised.dtype == torch.bfloat16
    assert normalised.is_contiguous(memory_format=torch.channels_last)


class Own(nn.BatchNorm2d):
    """Somebody's own layer may do anything."""


@pytest.mark.parametrize(
    "norm", [Own(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False)]
)
def test_other_layers_are_not_grouped(norm):
    assert not shared(norm).can_group()


def test_a_frozen_slice_is_not_grouped():
    layer = shared(nn.BatchNorm2d(3))
    layer.norms[0].eval()
    assert not layer.can_group()
