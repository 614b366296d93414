"""Networks that torch.fx traces, and networks that it cannot trace or does not see completely."""

import pytest
import torch
from torch import nn

from cnsn_cli.backbones.tracing.equivalence import check_same
from cnsn_cli.backbones.tracing.units import traced
from cnsn_cli.errors import ArchitectureError
from tests.backbones.tracing.test_units import TASK, Net, conv


class Branching(Net):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)


class Adding(Net):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("uses", torch.zeros(()))

    def forward(self, images):
        self.uses += 1
        return super().forward(images)


class Clipping(Net):
    def forward(self, images):
        self.scale.data.clamp_(-1, 1)
        return super().forward(images)


class Twice(Net):
    """Uses a value made from weights before and after the value changes."""

    def forward(self, images):
        scale = self.scale.clone()
        before = self.first(images) * scale
        return self.linear(self.last(self.second(before) * scale.mul_(2)).mean((2, 3)))


class Pair(Net):
    def forward(self, images):
        return super().forward(images), images


REFUSED = [
    (Branching, "torch.fx cannot trace Branching, at test_trace.py line"),
    (Adding, "Adding changes its weights or buffers when images go through it, by uses: write a plug-in"),
    (Clipping, "Clipping changes its weights or buffers when images go through it, by clamp_: write a plug"),
    (Twice, "Twice changes its weights or buffers when images go through it, by mul_: write a plug-in"),
    (Pair, "Pair returns a tuple, not one tensor of logits"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_networks_without_a_graph(make, message):
    with pytest.raises(ArchitectureError) as caught:
        traced(make(), TASK)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Restless(nn.Module):
    """Changes features in place without using the results, counts its images, and asserts something."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 4, 2), nn.Conv2d(4, 4, 3, 1, 1), conv(4, 4, 2)
        self.relu, self.gain = nn.ReLU(inplace=True), nn.Parameter(torch.tensor(1.0))  # neutral at first
        self.linear = nn.Linear(64, 3)

    def forward(self, images):
        count = images.shape[0]
        assert images.shape[1] == 3, f"{images.shape[1]} channels"
        features = self.second(self.first(images))
        features.mul_(self.gain)
        features += 1
        self.relu(features)
        return self.linear(self.third(features).reshape(count, -1))


def test_changes_in_place_and_the_number_of_images_and_assertions_are_no_obstacle():
    network = Restless()
    backbone = traced(network, TASK)
    check_same(network, backbone, TASK)
    assert backbone.conv_counts == (1, 1, 1)
    assert len([name for name, _ in backbone.units.named_parameters() if name.endswith("gain")]) == 1
