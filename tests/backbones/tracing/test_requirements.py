"""Networks that torch.fx cannot follow, or whose weights a file cannot hold: the error names a remedy."""

import warnings

import pytest
import torch
from torch import nn

from cnsn_cli.backbones.tracing.units import traced
from cnsn_cli.errors import ArchitectureError
from tests.backbones.tracing.test_units import TASK, conv


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 4, 2), conv(4, 4, 2), nn.Linear(4, 3)

    def forward(self, images):
        return self.fc(self.b(self.a(images)).mean((2, 3)))


class Masked(Net):
    def forward(self, images, mask, more=None):
        return super().forward(images) * mask


class Several(Net):
    def forward(self, *images):
        return super().forward(images[0])


class Deaf(Net):
    def forward(self):
        return torch.zeros(1, 3)


class Named(Net):
    def forward(self, images, **more):
        return {"logits": super().forward(images)}


def changed(name: str, change) -> nn.Module:
    network = Net()
    setattr(network, name, change(getattr(network, name)))
    return network


class Nested(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.inner = nn.BatchNorm2d(channels)

    def forward(self, features):
        return self.inner(super().forward(features))


def with_own_forward(network: Net) -> Net:
    network.fc.forward = lambda features: 2 * features
    return network


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return nn.utils.weight_norm(layer)


REFUSED = [
    (Masked, "forward of Masked takes mask: it must take images alone: give everything else a default"),
    (Several, "forward of Several takes *images: it must take images alone"),
    (Deaf, "forward of Deaf takes nothing: it must take images alone"),
    (Named, "Named returns a dict, not one tensor of logits: wrap it"),
    (
        lambda: changed("fc", nn.utils.parametrizations.weight_norm),
        "layer fc is parametrized: let the factory call torch.nn.utils.parametrize.remove_parametrizations",
    ),
    (lambda: changed("fc", old_weight_norm), "layer fc computes 'weight' from weights before it is called"),
    (
        lambda: changed("b", torch.jit.script),
        "layer b is compiled by torch.jit: let the factory leave that out",
    ),
    (lambda: changed("fc", lambda _: nn.LazyLinear(3)), "fc.weight has no shape yet: let the factory run"),
    (
        lambda: changed("b", lambda layers: nn.Sequential(layers[0], Nested(4))),
        "layer b.1 is a BatchNorm that holds layers with weights: put them beside it",
    ),
    (
        lambda: with_own_forward(Net()),
        "layer fc has its own forward, which copies would share: put it into a class",
    ),
    (lambda: Net().double(), "a.0.weight is float64, not float32: let the factory call .float()"),
    (lambda: changed("fc", lambda layer: layer.half()), "fc.weight is float16, not float32"),
]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_network_that_is_not_ordinary(make, message):
    with pytest.raises(ArchitectureError) as caught:
        traced(make(), TASK)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


class Kind(Net):
    """Every other parameter of `forward` has a default or stars."""

    def forward(self, images, mask=None, **more):
        return super().forward(images)


def test_a_network_that_takes_more_if_it_is_given():
    assert traced(Kind(), TASK).conv_counts == (1, 1)
