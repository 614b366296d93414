import pytest
import torch
from torch import nn

from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.folding import check_equal, conv_norm_pairs, fold
from cnsn_cli.network.model import Model
from cnsn_cli.task import Task
from tests.conftest import lively

TASK = Task.plain(classes=7)


@pytest.mark.parametrize(
    ("arch", "exits"), [("vgg16:width=0.25", (2, 7)), ("resnet20", (7,)), ("resnet50:width=0.25", (4, 25))]
)
def test_folding_changes_no_logit(arch, exits):
    images = torch.randn(4, 3, 32, 32)
    for model in lively(arch, exits).models():
        folded, expected = fold(model), model(images)
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        assert (folded(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(model(images), expected)  # fold does not change its argument


def test_a_folded_file(checkpoint, tmp_path):
    plain, folded = tmp_path / "plain.safetensors", tmp_path / "folded.safetensors"
    detach(checkpoint, "submodel1", plain)
    metadata = detach(checkpoint, "submodel1", folded, fold_bn=True)
    images = torch.randn(4, 3, 32, 32)
    expected, found = load(plain)(images), load(folded)(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not [name for name in load(folded).state_dict() if "running" in name]
    held = sum(t.numel() * t.element_size() for t in load(folded).state_dict().values())
    assert metadata.models[0].bytes == held
    assert metadata.folded
    assert metadata == read_metadata(folded, read_header(folded))


def test_a_norm_stays_that_follows_no_conv_or_knows_no_statistics():
    units = {"0": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), "1": nn.BatchNorm2d(4)}
    units["2"] = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    model = Model("base", 0, None, units, head, TASK).eval()
    assert conv_norm_pairs(model) == []
    assert len([m for m in fold(model).modules() if isinstance(m, nn.BatchNorm2d)]) == 3


def test_a_fold_that_differs_is_refused():
    model = lively("vgg11:width=0.1", ()).base
    folded = fold(model)
    with torch.no_grad():
        folded.units[3][0].bias.add_(0.1)
    with pytest.raises(
        CheckpointError, match=r"changes the logits of base by .* detach it without --fold-bn"
    ):
        check_equal(model, folded)
