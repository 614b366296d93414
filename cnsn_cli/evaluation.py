"""Accuracy and loss of every model in a network."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cnsn_cli.checkpoint import load
from cnsn_cli.complexity import ModelCost, model_costs
from cnsn_cli.data import load_recorded
from cnsn_cli.device import choose_device, place
from cnsn_cli.images import normalise
from cnsn_cli.metadata import read_metadata
from cnsn_cli.network import Cnsn, Model
from cnsn_cli.recalibration import recalibrated
from cnsn_cli.split import Split
from cnsn_cli.tensorfile import read_header

BATCH_SIZE = 200  # one for all, so that whole and detached files agree to the last digit
BATCH_PIXELS = BATCH_SIZE * 96**2  # fewer of images that are larger, which must not take gigabytes


@dataclass(frozen=True)
class ModelResult:
    """`accuracy` 0..1 and mean cross-entropy `loss` of one model on a split."""

    name: str
    accuracy: float
    loss: float


@dataclass(frozen=True)
class ClassResult:
    """How one model does on one class: `precision`, `recall` and `f1` 0..1, over `images` of that class."""

    class_name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Report:
    """How all models of a file do on `images` test images of `data`; `classes` by model, where asked for.

    `skipped` says of each image that was left out what is wrong with it.
    """

    data: str
    images: int
    costs: list[ModelCost]
    results: list[ModelResult]
    classes: dict[str, list[ClassResult]]
    skipped: tuple[str, ...]


def evaluate_file(
    path: Path,
    data: str | None = None,
    data_dir: str | Path = "data",
    device: str = "auto",
    per_class: bool = False,
    recalibrate: int = 0,
    skip_bad: bool = False,
) -> Report:
    """Evaluate every model of a file on test images, those of the data it was trained on by default.

    With `recalibrate`, on BN statistics computed anew from so many batches of training images; with
    `skip_bad`, images that cannot be read are left out. Raises CheckpointError for the file, DataError for
    the data.
    """
    metadata = read_metadata(path, read_header(path))
    chosen = choose_device(device)
    network = load(path)
    split, skipped = load_recorded("test", metadata, data, data_dir, skip_bad)
    costs = model_costs(network)
    models = place(network, chosen).models()
    if recalibrate:
        train, bad = load_recorded("train", metadata, data, data_dir, skip_bad)
        models, skipped = recalibrated(models, train, recalibrate), bad + skipped
    classes = {model.name: evaluate_classes(model, split) for model in models} if per_class else {}
    results = evaluate_models(models, split)
    return Report(data or str(metadata.data), len(split), costs, results, classes, skipped)


def evaluate(network: Cnsn | Model, split: Split) -> list[ModelResult]:
    """Run each model by itself, in eval mode, on the device that the network is on."""
    return evaluate_models(network.models(), split)


def evaluate_models(models: list[Model], split: Split) -> list[ModelResult]:
    """The same for models of one task, from wherever they come."""
    results = []
    for model, logits in zip(models, predict(models, split), strict=True):
        correct = (logits.argmax(1) == split.labels.cpu()).sum().item()
        loss = F.cross_entropy(logits.double(), split.labels.cpu()).item()
        results.append(ModelResult(model.name, correct / len(split), loss))
    return results


def evaluate_classes(model: Model, split: Split) -> list[ClassResult]:
    """Precision, recall and F1 of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    predictions = predict([model], split)[0].argmax(1)
    names = model.task.class_names
    columns = precision_recall_fscore_support(
        split.labels.cpu().numpy(), predictions.numpy(), labels=range(len(names)), zero_division=0.0
    )
    return [
        ClassResult(name, float(precision), float(recall), float(f1), int(images))
        for name, precision, recall, f1, images in zip(names, *columns, strict=True)
    ]


@torch.inference_mode()
def predict(models: list[Model], split: Split) -> list[Tensor]:
    """Logits (N, classes) of all images of a split for each model, on the CPU."""
    device = next(models[0].parameters()).device
    models = [model.eval() for model in models]
    logits: list[list[Tensor]] = [[] for _ in models]
    size = min(BATCH_SIZE, BATCH_PIXELS // models[0].task.image_size ** 2)
    for pixels in split.batches(list(torch.arange(len(split)).split(size))):  # type: ignore[no-untyped-call]
        images = normalise(pixels.to(device), models[0].task)
        for model, parts in zip(models, logits, strict=True):
            parts.append(model(images))
    return [torch.cat(parts).cpu() for parts in logits]
