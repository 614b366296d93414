"""Where units end, what the units keep of the network, and networks without a place for a cut."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.detach_points import borders, detach_points
from cnsn_cli.backbones.meta import blank, emptied
from cnsn_cli.backbones.tracing.equivalence import check_same
from cnsn_cli.backbones.tracing.units import traced
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

TASK = Task.plain(classes=3, image_size=16)
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def conv(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU())


class Net(nn.Module):
    """Two convs, a block with paths of 1 and 3 convs, a conv; functional dropout; a constant of its own."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self.first, self.second = conv(3, 8, 2), conv(8, 8)
        self.long = nn.Sequential(conv(8, 8), conv(8, 8), conv(8, 8))
        self.short = nn.Conv2d(8, 8, 1)
        self.last, self.linear = conv(8, 16, 2), nn.Linear(16, 3)
        self.register_buffer("shift", torch.full((1, 8, 1, 1), 0.25), persistent=False)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, images, masks=None):
        features = F.dropout(self.second(self.first(images)), self.p, self.training)
        branch = stochastic_depth(self.long(features), 0.5, "row", self.training)
        features = (branch + self.short(features)) * self.scale + self.shift
        return self.linear(self.last(features).mean((2, 3)))


def test_units_end_where_one_feature_map_is_all_there_is():
    backbone = traced(Net(), TASK)
    assert backbone.conv_counts == (1, 1, 3, 1)  # of a block, the longest path counts
    points = detach_points(backbone, TASK.image_shape)
    assert [tuple(point) for point in points] == [(1, 1, (8, 8, 8)), (2, 2, (8, 8, 8)), (5, 3, (8, 8, 8))]


def test_names_stay_recognisable():
    names = traced(Net(), TASK).units.state_dict().keys()
    assert {"0.first.0.weight", "2.long.1.1.running_mean", "2.short.bias", "2.scale", "2.shift"} <= names


@pytest.mark.parametrize("training", [False, True])
def test_the_same_function_in_evaluation_and_in_training(training):
    """In training, dropout in both networks draws the same random numbers."""
    network = Net().train(training)
    whole = Cnsn(traced(copy.deepcopy(network), TASK), (), TASK).train(training)
    torch.manual_seed(1)
    expected = network(IMAGES)
    torch.manual_seed(1)
    assert torch.equal(nn.Sequential(whole.units, whole.head)(IMAGES), expected)
    assert training == (not torch.equal(network(IMAGES), network(IMAGES)))


def test_a_blank_network_has_shapes_only():
    with blank():
        backbone = traced(Net(), TASK)
    emptied(backbone.units, backbone.head)
    whole = nn.ModuleDict({"units": backbone.units, "head": backbone.head})
    assert all(tensor.is_meta for tensor in whole.state_dict().values())
    assert all(buffer.is_meta for buffer in whole.buffers())


def test_every_border_has_a_reason():
    found = borders(traced(Net(), TASK), TASK.image_shape)
    yes = [(border.after, border.drops) for border in found if border.reason is None]
    assert yes == [("units.0, first.2", 1), ("units.1, functional_dropout", 2), ("units.2, add_1", 5)]
    no = {border.after: border.reason for border in found if border.reason is not None}
    assert no["long.1.0"] == "later layers need dropout and long_1_0"
    assert no["units.3, last.2"] == "no conv layer follows"
    found = borders(registry.find("vgg11").build_blank(Task.plain()), (3, 32, 32))
    assert [border.reason for border in found] == [None] * 7 + ["no conv layer follows"]


class Tied(nn.Module):
    """One conv is used twice, so that no cut may go between the two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last, self.linear = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 3)

    def forward(self, images):
        return self.linear(self.last(self.twice(self.twice(self.first(images)))).mean((2, 3)))


def test_weights_that_are_used_twice_stay_in_one_unit():
    backbone = traced(Tied(), TASK)
    assert backbone.conv_counts == (1, 2, 1)
    reason = {b.after: b.reason for b in borders(backbone, TASK.image_shape)}["twice.0"]
    assert "the weights of twice.0" in reason


class Scaled(nn.Module):
    """A scale and a gate: weights outside of layers. Each is used before and after a conv."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.gate = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.zeros(8, 1, 1))
        self.first, self._run = conv(3, 8), conv(8, 8)  # a Segment once had a method of this name
        self.third, self.fourth, self.linear = conv(8, 8), conv(8, 8), nn.Linear(8, 3)

    def forward(self, images):
        gate = F.relu(self.gate + 1, inplace=True)
        features = self._run(self.first(images) * self.scale) * self.scale
        features = self.fourth(self.third(features) * gate) * gate
        return self.linear(features.mean((2, 3)))


def test_weights_without_a_layer_stay_in_one_unit():
    """The network reads the weights once and uses them twice, also through a value made far from its uses."""
    network = Scaled()
    backbone = traced(network, TASK)
    check_same(network, backbone, TASK)
    assert backbone.conv_counts == (1, 1, 1, 1)
    kept = [[name for name, _ in unit.named_parameters(recurse=False)] for unit in backbone.units]
    assert kept == [[], ["scale"], [], ["gate"]]
    names = [*backbone.units.state_dict(), *backbone.head.state_dict()]
    assert len(names) == len(network.state_dict())


class Skipping(Net):
    def forward(self, images):
        return self.linear(
            F.adaptive_avg_pool2d(self.last(self.second(self.first(images))), 1).flatten(1) + images.mean()
        )


class Moody(Net):
    def forward(self, images):
        logits = super().forward(images)
        return logits * 2 if self.training else logits


class Quieter(Net):
    """A constant differs between training and evaluation, but the graph does not."""

    def forward(self, images):
        return super().forward(images) * torch.tensor(0.5 if self.training else 1.0)


class OneConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = conv(3, 8), nn.Linear(8, 3)

    def forward(self, images):
        return self.linear(self.conv(images).mean((2, 3)))


REFUSED = [
    (Skipping, "no place between its convs passes on one feature map and nothing else"),
    (Moody, "Moody computes something else in training than in evaluation: write a plug-in for it"),
    (Quieter, "Quieter computes something else in training than in evaluation: write a plug-in for it"),
    (OneConv, "a cut goes between two conv layers, and its longest path has 1"),
    (
        lambda: nn.Sequential(conv(3, 8), conv(8, 4)),
        "returns a tensor 1 x 4 x 16 x 16 for one image, not 1 x 3",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_what_cannot_be_taken_to_pieces(make, message):
    with pytest.raises(ArchitectureError) as caught:
        traced(make(), TASK)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Switched(nn.Module):
    """Two convs, and dropout that is always on or always off."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.on = conv(3, 4, 2), conv(4, 4, 2), nn.Linear(4, 3), on

    def forward(self, images):
        features = F.dropout(self.a(images), 0.5, training=self.on)
        return self.fc(self.b(features).mean((2, 3)))


@pytest.mark.parametrize("on", [True, False])
def test_dropout_without_a_mode_is_refused_and_not_changed(on):
    with pytest.raises(ArchitectureError, match="computes something else in training than in evaluation"):
        traced(Switched(on), TASK)
