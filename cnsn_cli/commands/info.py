"""`cnsn info`: what a file says about itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cnsn_cli.commands.options import Json, model_file
from cnsn_cli.commands.output import print_json, print_models, printable

if TYPE_CHECKING:
    from cnsn_cli.files.metadata import Metadata


def info(
    file: Annotated[Path, model_file("A network, a detached model, or an exported .onnx.")],
    json: Json = False,
) -> None:
    """Show what a file says about its models, without reading the weights."""
    from cnsn_cli.files.model_file import read_info

    metadata = read_info(file)
    if json:
        print_json(metadata.model_dump(mode="json", exclude_none=True))
        return
    for label, text in _lines(metadata).items():
        print(f"{label:<13}{printable(text)}")
    print_models([model.model_dump() for model in metadata.models])


def _share(crop_pct: float) -> str:
    return "" if crop_pct == 1 else f", the middle {crop_pct:.1%} of the shorter side of a picture"


def _lines(metadata: "Metadata") -> dict[str, str]:
    task = metadata.task
    names = ", ".join(task.class_names[:10]) + ", ..." * (task.num_classes > 10)
    lines = {
        "kind": _kind(metadata),
        "architecture": f"{metadata.arch} ({metadata.provider})",
        "images": f"{task.in_channels} x {task.image_size} x {task.image_size}{_share(task.crop_pct)}",
        "classes": f"{task.num_classes}: {names}",
        "BN": _statistics(metadata),
        "step-down": metadata.step_down,
        "weights": metadata.dtype,
        "trained on": f"{metadata.data or 'unknown'}, in {metadata.precision}",
        "recipe": ", ".join(_changed(metadata.recipe)),
        "made with": ", ".join(f"{name} {version}" for name, version in metadata.versions.items()),
    }
    if metadata.started_from:
        lines["start"] = f"weights of the original network ({metadata.started_from})"
    if metadata.selection:
        epoch, images = metadata.selection.epoch, metadata.selection.images
        lines["selected"] = f"epoch {epoch}, on the {images} images, as are accuracy and loss"
    if metadata.parent:
        lines["parent"] = metadata.parent
    return lines


def _kind(metadata: "Metadata") -> str:
    if metadata.kind == "network":
        return "a network with its sub-models"
    return "a sub-model that was trained alone" if metadata.trained_alone else "a detached model"


def _statistics(metadata: "Metadata") -> str:
    batches = metadata.recalibrated
    source = f", recomputed from {batches} batch{'es' * (batches > 1)} of images" if batches else ""
    return ("folded into the convs" if metadata.folded else f"{metadata.bn} statistics") + source


def _changed(recipe: dict[str, Any]) -> list[str]:
    """The settings that every recipe must give, and other settings that differ from their defaults."""
    from cnsn_cli.training.recipe import Recipe

    usual = {key: field.default for key, field in Recipe.model_fields.items()}
    return [
        f"{key} {value}"
        for key, value in recipe.items()
        if key not in usual or value != (list(usual[key]) if isinstance(usual[key], tuple) else usual[key])
    ]
