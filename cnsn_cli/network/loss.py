"""The loss over all models. `training` minimises it. It sees logits and labels, not networks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cnsn_cli.choices import Teacher


class Distillation(NamedTuple):
    """Sub-models learn from the labels and from a better model, the teacher (Hinton et al. 2015).

    The loss of a sub-model is (1 - `weight`) * cross-entropy + `weight` * `temperature`^2 * KL. KL is the
    divergence of the sub-model's softmax from the teacher's softmax, both at that temperature. `teacher` is
    `base` (the base-model teaches every sub-model) or `chain` (each model teaches the next one).
    """

    teacher: Teacher
    weight: float
    temperature: float


def multi_model_loss(
    logits: Sequence[Tensor],
    targets: Tensor,
    label_smoothing: float = 0.0,
    distillation: Distillation | None = None,
    scales: Sequence[float] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. 1 of the paper: the loss of the base-model plus the mean loss of the sub-models.

    Arguments:
        logits: (N, classes) of the base-model, sub-model 0, 1, ...
        targets: class numbers (N,) or probabilities (N, classes).
        label_smoothing: the share of the target that is spread over all classes, 0..1; 0 by default.
        distillation: how sub-models learn from a teacher; None: from the labels alone.
        scales: one weight for the loss of each sub-model; None: 1 each.

    Returns the weighted total (a scalar), and the loss of each model without weights (models,).
    """
    losses = [F.cross_entropy(scores, targets, label_smoothing=label_smoothing) for scores in logits]
    if distillation:
        teachers = [logits[0]] * len(losses) if distillation.teacher == "base" else logits
        for index in range(1, len(losses)):
            soft = soft_loss(logits[index], teachers[index - 1], distillation.temperature)
            losses[index] = torch.lerp(losses[index], soft, distillation.weight)
    total, each = losses[0], torch.stack(losses)
    if len(losses) > 1:
        weights = 1 if scales is None else torch.as_tensor(scales, device=each.device)
        total = total + (each[1:] * weights).mean()
    return total, each


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of logits (N, classes) at temperature T; the teacher gets no gradient."""
    log_student = F.log_softmax(student / temperature, 1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, 1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
