"""A file whose architecture is in a package that is not installed: every command names the package."""

import importlib
import sys

import pytest

from tests.commands.test_cli import one_line

NETS = """
from torch import nn

def plain(num_classes):
    convs = [nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""


@pytest.fixture
def run(cnsn, distribution, monkeypatch, image_folder, tmp_path):
    """The folder of a run whose architecture is gone."""
    distribution("my-nets", {"gone_nets": NETS}, {"plain": "gone_nets:plain"})
    words = ("--data", image_folder, "--recipe", "quick", "--epochs", 1, "--batch-size", 8)
    trained = cnsn("train", "--arch", "plain", "--exits", 1, *words, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-my-nets" not in path])
    importlib.invalidate_caches()
    return tmp_path / "run"


def test_every_command_names_the_package(cnsn, run, image_folder, tmp_path):
    best, new = run / "best.safetensors", tmp_path / "new.safetensors"
    for words in (
        ("eval", best),
        ("mac", best),
        ("predict", best, image_folder / "test" / "dark"),
        ("bench", best),
        ("export", best, "--to", "pt2", "-o", tmp_path / "small.pt2"),
        ("detach", best, "--submodel", 0, "--fold-bn", "-o", new),
        ("train", "--freeze-base", best, "--exits", 1, "--out", tmp_path / "other"),
        ("train", "--resume", run, "--epochs", 2, "--override"),
    ):
        message = one_line(cnsn(*words))
        assert "unknown architecture 'plain': it needs my-nets 1.0, which is not installed" in message, words
    assert "plain (my-nets 1.0)" in cnsn("info", best).out
    assert cnsn("detach", best, "--submodel", 0, "-o", new).code == 0
    assert "unknown architecture 'plain': choose from" in one_line(cnsn("mac", "--arch", "plain"))
