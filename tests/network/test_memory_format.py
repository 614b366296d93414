import pytest
import torch
from torch import nn

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.network.memory_format import contiguous, copy_like, for_few_images, for_file, for_many_images
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task


class View(nn.Module):
    """`view` cannot read channels-last features."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.view(len(features), -1)


def network(flatten: nn.Module) -> Cnsn:
    """A network whose last unit takes 4 x 4 pixels of 256 channels."""
    units = nn.Sequential(nn.Conv2d(3, 256, 2, 2), nn.Conv2d(256, 4, 3, padding=1))
    return Cnsn(Backbone(units, nn.Sequential(flatten, nn.Linear(64, 10)), (1, 1)), (1,), Task.plain(10, 8))


def channels_last(network: Cnsn) -> list[bool]:
    return [not unit.weight.is_contiguous() for unit in network.units]


@pytest.mark.parametrize(
    ("layout", "flatten", "expected"),
    [
        (for_few_images, nn.Flatten, [True, True]),
        (for_many_images, nn.Flatten, [True, False]),
        (for_few_images, View, [False, False]),
        (for_many_images, View, [False, False]),
    ],
)
def test_the_format_is_the_fastest_that_all_layers_can_read(layout, flatten, expected):
    laid_out = layout(network(flatten()))
    assert channels_last(laid_out) == expected
    assert [logits.shape for logits in laid_out(torch.randn(2, 3, 8, 8))] == [(2, 10)] * 2
    assert channels_last(contiguous(laid_out)) == [False, False]


def test_momentum_lies_as_its_parameter():
    parameter = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    values = torch.randn(4, 3, 2, 2)
    copied = copy_like(parameter, values)
    assert torch.equal(copied, values)
    assert copied.stride() == parameter.stride() != values.stride()
    assert not copied.requires_grad
    assert copied.data_ptr() != values.data_ptr()


def test_tensors_in_files_are_contiguous():
    parameter = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    held = for_file(parameter)
    assert held.is_contiguous()
    assert not held.requires_grad
    assert torch.equal(held, parameter)
