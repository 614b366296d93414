import math

import pytest
import torch

from cnsn_cli.network.loss import Distillation, multi_model_loss


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


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def leaf(*scores: float) -> torch.Tensor:
    return torch.tensor([scores], dtype=torch.float64, requires_grad=True)


def test_distillation_by_hand():
    """The gradient of T^2 KL(teacher || student) in the student's logits is T (student - teacher)."""
    base, student = leaf(2.0, 0.0, -1.0), leaf(0.5, 1.0, 0.0)
    weight, temperature = 0.25, 2.0
    settings = Distillation("base", weight, temperature)
    total, losses = multi_model_loss([base, student], torch.tensor([0]), distillation=settings)
    total.backward()
    hard, teacher = softmax([0.5, 1.0, 0.0]), softmax([1.0, 0.0, -0.5])
    soft = softmax([0.25, 0.5, 0.0])
    kl = sum(t * math.log(t / s) for t, s in zip(teacher, soft, strict=True))
    assert losses[1].item() == pytest.approx((1 - weight) * -math.log(hard[0]) + weight * temperature**2 * kl)
    labels = (1, 0, 0)
    expected = [
        (1 - weight) * (h - y) + weight * temperature * (s - t)
        for h, y, s, t in zip(hard, labels, soft, teacher, strict=True)
    ]
    assert student.grad.flatten().tolist() == pytest.approx(expected)
    by_labels = [p - y for p, y in zip(softmax([2.0, 0.0, -1.0]), labels, strict=True)]
    assert base.grad.flatten().tolist() == pytest.approx(by_labels)  # base has no teacher


@pytest.mark.parametrize(("teacher", "expected"), [("base", 0), ("chain", 1)])
def test_who_teaches_the_second_submodel(teacher, expected):
    """With weight 1, a student whose logits equal the teacher's has a loss of 0."""
    logits = [leaf(2.0, 0.0), leaf(-1.0, 3.0)]
    student = logits[expected].detach().clone().requires_grad_()
    settings = Distillation(teacher, 1.0, 3.0)
    _, losses = multi_model_loss([*logits, student], torch.tensor([0]), distillation=settings)
    assert losses[2].item() == pytest.approx(0, abs=1e-12)
    assert losses[1].item() > 0.5


def test_scales_weigh_submodels_and_leave_what_is_reported():
    scores = [[1.0, 0.0], [0.5, -0.5], [-1.0, 2.0]]
    logits = [leaf(*row) for row in scores]
    total, losses = multi_model_loss(logits, torch.tensor([0]), scales=[0.5, 0.25])
    by_hand = [cross_entropy(row, 0) for row in scores]
    assert losses.tolist() == pytest.approx(by_hand)
    assert total.item() == pytest.approx(by_hand[0] + (0.5 * by_hand[1] + 0.25 * by_hand[2]) / 2)
    total.backward()
    expected = 0.25 / 2 * (softmax(scores[2])[0] - 1)
    assert logits[2].grad[0, 0].item() == pytest.approx(expected)


def test_probabilities_and_label_smoothing_by_hand():
    scores, target, smoothing = [1.0, 0.0, -1.0], [0.7, 0.3, 0.0], 0.3
    _, losses = multi_model_loss(
        [leaf(*scores)], torch.tensor([target], dtype=torch.float64), label_smoothing=smoothing
    )
    smooth = [(1 - smoothing) * share + smoothing / 3 for share in target]
    assert losses.item() == pytest.approx(sum(s * cross_entropy(scores, i) for i, s in enumerate(smooth)))
