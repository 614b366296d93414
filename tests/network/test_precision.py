"""What a run computes with if nobody says: bf16 where that is faster, and the same after a stop."""

import pytest
import torch
from torch import nn

from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.network import precision
from cnsn_cli.network.precision import fastest_precision
from cnsn_cli.training.run import resume, train
from tests.conftest import TINY
from tests.training.test_resume import Stop, stop_at_step

PLAIN = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 2))
DEPTHWISE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 16, 3, groups=8)))


@pytest.mark.parametrize(
    ("device", "emulated", "plain", "depthwise"),
    [("cpu", False, "bf16", "fp32"), ("cpu", True, "fp32", "fp32"), ("cuda", False, "bf16", "bf16"),
     ("mps", False, "fp32", "fp32")],
)  # fmt: skip
def test_the_fastest_precision(monkeypatch, device, emulated, plain, depthwise):
    monkeypatch.setattr(precision, "emulates_bf16", lambda device: emulated)
    assert fastest_precision(PLAIN, torch.device(device)) == plain
    assert fastest_precision(DEPTHWISE, torch.device(device)) == depthwise


@pytest.mark.parametrize(
    ("asked", "emulated", "found"),
    [(None, False, "bf16"), (None, True, "fp32"), ("fp32", False, "fp32"), ("bf16", True, "bf16")],
)
def test_a_run_says_and_records_it(monkeypatch, image_folder, tmp_path, quick, asked, emulated, found):
    monkeypatch.setattr(precision, "emulates_bf16", lambda device: emulated)
    events = []
    train(TINY, (1,), str(image_folder), quick, tmp_path / "run", precision=asked, watch=events.append)
    assert events[0].precision == found
    assert metadata_in(tmp_path / "run" / "best.safetensors").precision == found


@pytest.mark.parametrize("began_with_bf16", [True, False])
def test_a_resumed_run_keeps_its_precision(monkeypatch, image_folder, tmp_path, quick, began_with_bf16):
    """It may go on where the other precision is faster."""
    monkeypatch.setattr(precision, "emulates_bf16", lambda device: not began_with_bf16)
    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), quick, tmp_path, force=True, watch=stop_at_step(2))
    monkeypatch.setattr(precision, "emulates_bf16", lambda device: began_with_bf16)
    events = []
    resume(tmp_path, watch=events.append)
    assert events[0].precision == ("bf16" if began_with_bf16 else "fp32")
