"""Accuracy and loss of every model in a network or a file.

Training evaluates with it after each epoch, `cnsn eval` evaluates files, and `deploy` compares smaller files
with it. It does not know how a model was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cnsn_cli import distributed
from cnsn_cli.data.datasets import load_recorded
from cnsn_cli.data.origin import RECORDED, Origin
from cnsn_cli.data.pixels import batch_size
from cnsn_cli.data.split import Split
from cnsn_cli.device import choose_device
from cnsn_cli.errors import CheckpointError
from cnsn_cli.evaluation.costs import ModelCost, file_costs
from cnsn_cli.files.model_file import Classifier, ModelFile, open_file
from cnsn_cli.memory import keep_freed_memory
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.recalibration import recalibrated
from cnsn_cli.stages import counted, stage


@dataclass(frozen=True)
class ModelResult:
    """The `accuracy` (0..1) and the mean cross-entropy `loss` of one model on the images of a split."""

    name: str
    accuracy: float
    loss: float


@dataclass(frozen=True)
class ClassResult:
    """The `precision`, `recall` and `f1` (0..1) of one model on one class; the split has `images` of it."""

    class_name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Report:
    """The results of all models of a file on `images` test images of `data`.

    `classes` maps the name of a model to its results for each class, and `confusions` to its table of
    `confusion`; both are empty unless asked for. `skipped` has a line for each image that was left out, with
    the reason; `notes` say what else was left out.
    """

    data: str
    images: int
    costs: list[ModelCost]
    results: list[ModelResult]
    classes: dict[str, list[ClassResult]]
    skipped: tuple[str, ...]
    confusions: dict[str, list[list[int]]]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def evaluate_file(
    path: Path,
    data: Origin = RECORDED,
    device: str = "auto",
    per_class: bool = False,
    recalibrate: int = 0,
    skip_bad: bool = False,
    confused: bool = False,
) -> Report:
    """Evaluate every model of a file on test images.

    path: a whole network, a detached model, or an exported ONNX file.
    data: the data set; RECORDED: the one that the network was trained on.
    device: `auto` (the fastest one), `cpu`, `cuda` or `mps`.
    per_class: measure precision, recall and F1 of each class too.
    recalibrate: recompute BN statistics from that many batches of training images first; 0: keep them.
    skip_bad: leave out images that cannot be read.
    confused: count how often each class is taken for each other class too.

    Raises CheckpointError for the file, DataError for the data, DeviceError for the device.
    """
    file = open_file(path, choose_device(device))
    task, recorded = file.metadata.task, file.metadata.origin
    split, skipped, notes = load_recorded("test", task, recorded, data, skip_bad)
    models = file.models
    if recalibrate:
        train, bad, more = load_recorded("train", task, recorded, data, skip_bad)
        models = recalibrated(_with_weights(file).models(), train, recalibrate)
        skipped, notes = bad + skipped, more + notes
    with stage(f"evaluating on {counted(len(split), 'test image')}"):
        classes = {model.name: evaluate_classes(model, split) for model in models} if per_class else {}
        confusions = {model.name: confusion(model, split) for model in models} if confused else {}
        results = evaluate_models(models, split)
    costs, name = file_costs(file), data.or_recorded(recorded).place("test")
    return Report(name, len(split), costs, results, classes, skipped, confusions, task.class_names, notes)


def _with_weights(file: ModelFile) -> Cnsn | Model:
    if file.network is None:
        raise CheckpointError(
            f"{file.path} is exported: give --recalibrate to cnsn detach, before the export"
        )
    return file.network


def evaluate(network: Cnsn | Model, split: Split) -> list[ModelResult]:
    """Accuracy and loss of every model in a network, in the order of `network.models()`.

    Arguments:
        network: a whole network or a detached model, as `load` returns it.
        split: images with labels: one part of a data set, such as `load_dataset(...).test`.

    Each model runs by itself, in eval mode, on the device of the network. Accuracy is 0..1; the loss is the
    mean cross-entropy over the images. Raises DataError if an image cannot be read.
    """
    return evaluate_models([model.eval() for model in network.models()], split)


def evaluate_models(models: Sequence[Classifier], split: Split) -> list[ModelResult]:
    """Like `evaluate`, for classifiers of one task in eval mode. Several processes share the images."""
    mine = split
    if distributed.size() > 1:
        mine = split.take(torch.arange(distributed.rank(), len(split), distributed.size()))
    labels, results = mine.labels.cpu(), []
    for model, logits in zip(models, all_logits(models, mine), strict=True):
        correct = (logits.argmax(1) == labels).sum()
        loss = F.cross_entropy(logits.double(), labels, reduction="sum")
        sums = distributed.total(torch.stack([correct.double(), loss])) / len(split)
        results.append(ModelResult(model.name, *sums.tolist()))
    return results


def evaluate_classes(model: Classifier, split: Split) -> list[ClassResult]:
    """Precision, recall and F1 of each class, in the order of the class names."""
    from sklearn.metrics import precision_recall_fscore_support

    predictions = all_logits([model], split)[0].argmax(1)
    names = model.task.class_names
    columns = precision_recall_fscore_support(
        split.labels.cpu().numpy(), predictions.numpy(), labels=range(len(names)), zero_division=0.0
    )
    return [
        ClassResult(name, float(precision), float(recall), float(f1), int(images))
        for name, precision, recall, f1, images in zip(names, *columns, strict=True)
    ]


def confusion(model: Classifier, split: Split) -> list[list[int]]:
    """Row i, column j: how many images of class i the model takes for class j."""
    predictions, classes = all_logits([model], split)[0].argmax(1), len(model.task.class_names)
    pairs = torch.bincount(split.labels.cpu() * classes + predictions, minlength=classes**2)
    counts: list[list[int]] = pairs.view(classes, classes).tolist()
    return counts


@torch.inference_mode()
def all_logits(models: Sequence[Classifier], split: Split) -> list[Tensor]:
    """Logits (N, classes) of all images of a split for each model, on the CPU."""
    keep_freed_memory()
    logits: list[list[Tensor]] = [[] for _ in models]
    for pixels in split.in_order(batch_size(models[0].task)):
        for model, parts in zip(models, logits, strict=True):
            parts.append(model.logits(pixels))
    return [torch.cat(parts).cpu() for parts in logits]
