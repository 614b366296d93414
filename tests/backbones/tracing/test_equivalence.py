"""Networks whose pieces compute something else than the whole: cnsn notices it before training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnsn_cli.backbones.tracing.equivalence import check_same
from cnsn_cli.backbones.tracing.units import traced
from cnsn_cli.errors import ArchitectureError
from tests.backbones.tracing.test_requirements import Net
from tests.backbones.tracing.test_units import TASK


class Sign(torch.autograd.Function):
    """A straight-through estimator: torch.fx sees its output, but not its gradient."""

    @staticmethod
    def forward(context, features):
        return features.sign()

    @staticmethod
    def backward(context, gradient):
        return gradient


class Straight(Net):
    def forward(self, images):
        return self.fc(self.b(Sign.apply(self.a(images))).mean((2, 3)))


class HalfFrozen(Net):
    def forward(self, images):
        with torch.no_grad():
            features = self.a(images)
        return self.fc(self.b(features).mean((2, 3)))


class Doubtful(Net):
    """Dropout whose rate depends on the mode, too."""

    def forward(self, images):
        features = F.dropout(self.a(images), 0.9 if self.training else 0.0, self.training)
        return self.fc(self.b(features).mean((2, 3)))


class Stubborn(Net):
    """A BatchNorm that stays in eval mode when the network trains."""

    def train(self, mode=True):
        super().train(mode)
        self.a[1].eval()
        return self


class Failing(Net):
    def __init__(self) -> None:
        super().__init__()
        self.c = Nervous()

    def forward(self, images):
        return self.c(super().forward(images))


class Nervous(nn.Module):
    def forward(self, logits):
        return logits if not self.training else logits / torch.zeros(2)


class Divided(Net):
    def forward(self, images):
        return super().forward(images) * float("nan")


def run_blank() -> nn.Module:
    return Net().to("meta")


OTHERWISE = (
    "does something in training that its pieces do not, because torch.fx does not see it: write a plug-in"
)
REFUSED = [
    (Straight, f"Straight {OTHERWISE}"),
    (HalfFrozen, f"HalfFrozen {OTHERWISE}"),
    (Doubtful, f"Doubtful {OTHERWISE}"),
    (Stubborn, f"Stubborn {OTHERWISE}"),
    (Failing, "Failing cannot be trained: The size of tensor a (3) must match"),
    (Divided, "Divided returns NaN for images of random numbers"),
    (run_blank, "Net has weights on the meta device: make them on the CPU"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_the_pieces_would_do_otherwise(make, message):
    network = make()
    backbone = traced(network, TASK)
    with pytest.raises(ArchitectureError) as caught:
        check_same(network, backbone, TASK)
    assert str(caught.value).startswith(message)


def test_looking_leaves_no_trace():
    network = Net()
    backbone = traced(network, TASK)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(7)
    check_same(network, backbone, TASK)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    assert backbone.units.training


class Gained(Net):
    """The graph keeps the value that `gain` had when the network was traced."""

    gain = 1

    def forward(self, images):
        return super().forward(images) * self.gain


def test_what_the_graph_does_not_see_is_noticed():
    network = Gained()
    backbone = traced(network, TASK)
    check_same(network, backbone, TASK)
    network.gain = 2
    with pytest.raises(ArchitectureError, match=r"changes tensors in a way that torch.fx does not see"):
        check_same(network, backbone, TASK)


class Sociable(Net):
    """Subtracts the mean over a batch, in evaluation too."""

    def forward(self, images):
        return super().forward(images - images.mean(0))


def test_images_that_change_each_others_logits_are_noticed():
    network = Sociable()
    backbone = traced(network, TASK)
    with pytest.raises(ArchitectureError, match="Sociable lets the images of a batch change each other's"):
        check_same(network, backbone, TASK)


class Asserting(Net):
    def forward(self, images):
        torch._assert(images.shape[2] == 20, "it wants 20 pixels")
        return super().forward(images)


def test_what_a_network_raises_is_told_in_one_line():
    network = Asserting()
    backbone = traced(network, TASK)
    with pytest.raises(ArchitectureError, match=r"no images of shape \(3, 16, 16\): it wants 20 pixels"):
        check_same(network, backbone, TASK)
