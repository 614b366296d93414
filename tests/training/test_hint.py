"""The hint at the end of a run whose models learnt nothing."""

import math
from dataclasses import replace

import pytest
import torch

from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.training.hint import learnt_nothing
from tests.conftest import TINY

CHANCE = 48 / 360  # the share of the most frequent digit, the 3
NEAR = CHANCE + 2 * math.sqrt(CHANCE * (1 - CHANCE) / 360)


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset("digits")
    assert torch.bincount(dataset.test.labels).tolist()[3] == 48
    return dataset


@pytest.mark.parametrize(
    ("accuracy", "loss", "nothing"),
    [
        (0.098, 41.0, True),
        (CHANCE, 0.5, True),
        (CHANCE + 0.003, 2.0, False),
        (CHANCE + 0.003, math.log(10), True),
        (NEAR + 0.001, 41.0, False),
        (0.97, 0.1, False),
    ],
)
def test_models_that_are_no_better_than_one_answer(digits, quick, accuracy, loss, nothing):
    results = [ModelResult("base", 0.9, 0.3), ModelResult("submodel0", accuracy, loss)]
    hint = learnt_nothing(results, digits, quick)
    assert (hint is not None) == nothing
    if hint:
        assert hint.startswith(f"submodel0 ({accuracy:.2%}, loss {loss:.3f}) learnt nothing: the answer '3' ")
        assert "right for 13.33% of them; lower --lr (0.02), give more --epochs (1), or" in hint


def test_a_test_set_of_one_class_has_no_chance(digits, quick):
    ones = digits.test.take((digits.test.labels == 1).nonzero().flatten())
    assert learnt_nothing([ModelResult("base", 1.0, 0.1)], replace(digits, test=ones), quick) is None


def test_train_prints_the_hint(cnsn, image_folder, tmp_path):
    """With a learning rate of 3 the network answers one class for every image."""
    words = ("--arch", TINY, "--exits", "1", "--data", image_folder, "--recipe", "quick", "--epochs", 1)
    result = cnsn("train", *words, "--batch-size", 8, "--lr", 3, "--out", tmp_path / "run")
    assert result.code == 0
    assert result.err.splitlines()[-1].startswith("hint: base (")
    assert "of them; lower --lr (3), give more --epochs (1), or check" in result.err
