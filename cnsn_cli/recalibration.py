"""BN statistics computed anew: for weights that have changed since, or that several models share."""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from cnsn_cli.errors import CheckpointError
from cnsn_cli.images import normalise
from cnsn_cli.network import Model
from cnsn_cli.split import Split

BATCH_SIZE = 200


def recalibrated(models: Iterable[Model], train: Split, batches: int) -> list[Model]:
    """Copies of models with BN statistics of their own; raises CheckpointError where BN is folded."""
    copies = [copy.deepcopy(model) for model in models]
    for model in copies:
        if not any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise CheckpointError(f"{model.name} has no BN layers to recalibrate: leave out --recalibrate")
    recalibrate(copies, train, batches)
    return copies


@torch.no_grad()
def recalibrate(models: Iterable[Model], train: Split, batches: int) -> None:
    """Replace the running statistics of each model by the averages over `batches` batches of images.

    These are training images as they are, without augmentation, and the same ones at every call. Averages
    are cumulative, so that the order of the batches does not matter.
    """
    for model in models:
        update_bn(calibration_images(model, train, batches), model)


def calibration_images(model: Model, train: Split, batches: int) -> Iterator[Tensor]:
    """Normalised images (n, C, H, W) from all over the training images, on the model's device."""
    device = next(model.parameters()).device
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    chosen = list(order[: batches * BATCH_SIZE].split(BATCH_SIZE))  # type: ignore[no-untyped-call]
    for pixels in train.batches(chosen):
        yield normalise(pixels.to(device), model.task)
