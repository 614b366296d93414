"""What is minimised."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_model_loss(logits: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 of the paper: the base-model's cross-entropy plus the mean of the sub-models'.

    `logits` are (N, classes) of the base-model, sub-model 0, 1, ...; `labels` (N,). Returns the loss and,
    detached, the cross-entropy of each model (models,).
    """
    losses = torch.stack([F.cross_entropy(model_logits, labels) for model_logits in logits])
    total = losses[0]
    if len(losses) > 1:
        total = total + losses[1:].mean()
    return total, losses.detach()
