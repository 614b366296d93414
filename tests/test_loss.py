import math

import pytest
import torch

from cnsn_cli.loss import multi_model_loss


def cross_entropy(scores: list[float], label: int) -> float:
    return math.log(sum(math.exp(score) for score in scores)) - scores[label]


@pytest.mark.parametrize("submodels", [0, 1, 2, 5])
def test_base_plus_mean_of_submodels(submodels):
    scores = [[[float(model), 1.0, -1.0], [0.5, float(model), 2.0]] for model in range(1 + submodels)]
    by_hand = [(cross_entropy(rows[0], 0) + cross_entropy(rows[1], 2)) / 2 for rows in scores]
    expected = by_hand[0] + (sum(by_hand[1:]) / submodels if submodels else 0)
    logits = [torch.tensor(rows, requires_grad=True) for rows in scores]
    total, losses = multi_model_loss(logits, torch.tensor([0, 2]))
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-6)
    assert total.requires_grad
    assert not losses.requires_grad
