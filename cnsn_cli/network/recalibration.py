"""BN statistics measured again: for weights that changed after the last measurement, or are shared by models.

Training, evaluation and `deploy` call this module; each model is recalibrated by itself. Images come from a
`Split`; this module does not know files or data sets.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.data.pixels import batch_size, normalise
from cnsn_cli.data.split import Split
from cnsn_cli.device import exact_fp32
from cnsn_cli.errors import CheckpointError, one_line
from cnsn_cli.network.model import Model
from cnsn_cli.stages import stage


def recalibrated(models: Iterable[Model], train: Split, batches: int) -> list[Model]:
    """Copies of `models`, recalibrated. Raises CheckpointError if a model has no BN layers."""
    copies = [copy.deepcopy(model) for model in models]
    for model in copies:
        if not any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise CheckpointError(f"{model.name} has no BN layers to recalibrate: leave out --recalibrate")
    with stage(f"recomputing BN statistics, batches: {batches:,}"):
        recalibrate(copies, train, batches)
    return copies


@torch.no_grad()
def recalibrate(models: Iterable[Model], train: Split, batches: int) -> None:
    """Replace the running statistics of each model by the averages over `batches` batches of images.

    The images are training images without augmentation, the same ones at every call. The averages are
    cumulative, so that the order of the batches does not matter. Dropout and similar layers run in eval mode;
    afterwards all models are in eval mode.
    """
    for model in models:
        norms = [module for module in model.eval().modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # cumulative
        for images in calibration_images(model, train, batches) if norms else ():
            _measure(model, images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum


def _measure(model: Model, images: Tensor) -> None:
    try:
        with exact_fp32():
            model(images)
    except ValueError as error:  # a layer of BN gets one value a channel
        reason = one_line(error)
        raise CheckpointError(
            f"{model.name} cannot be recalibrated with {len(images)} training image: {reason}"
        ) from error


def calibration_images(model: Model, train: Split, batches: int) -> Iterator[Tensor]:
    """Batches of normalised images (n, C, H, W), drawn from all training images, on the model's device.

    The sizes of batches differ by at most one image, because averages give each batch the same weight. A
    batch has at least two images, because BN cannot measure one value a channel.
    """
    device = next(model.parameters()).device
    size = max(2, batch_size(model.task))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: batches * size]
    count = min(-(-len(order) // size), max(1, len(order) // 2))
    chosen = list(order.tensor_split(count))
    for pixels in train.batches(chosen):
        yield normalise(pixels.to(device), model.task)
