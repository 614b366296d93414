import pytest
from torch import nn

from cnsn_cli.backbones.backbone import Backbone


def test_two_layers_cannot_have_one_tensor():
    units = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    units[1].bias = units[0].bias
    with pytest.raises(
        ValueError, match=r"units\.1\.bias and units\.0\.bias are one tensor: give each layer"
    ):
        Backbone(units, nn.Flatten(), (1, 1))


@pytest.mark.parametrize("counts", [(1,), (1, 1, 1)])
def test_a_backbone_counts_the_convs_of_every_unit(counts):
    with pytest.raises(ValueError, match=f"conv_counts has {len(counts)} entries for 2 units"):
        Backbone(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Identity(), counts)
