"""`cnsn eval`: accuracy and loss of every model in a file."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.commands.options import Data, DataDir, Device, Json, Plugin, Recalibrate, SkipBad
from cnsn_cli.commands.output import print_json, print_models, print_skipped, print_table
from cnsn_cli.commands.signals import ended_by_signals

if TYPE_CHECKING:
    from cnsn_cli.evaluation.accuracy import ClassResult


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A network, a detached model, or an exported .onnx.")],
    data: Data = None,
    data_dir: DataDir = Path("data"),
    device: Device = "auto",
    per_class: Annotated[bool, typer.Option(help="Also show precision and recall of every class.")] = False,
    recalibrate: Recalibrate = 0,
    skip_bad: SkipBad = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Measure accuracy and loss of every model in a file on the test images."""
    from cnsn_cli.evaluation.accuracy import evaluate_file

    with ended_by_signals(checkpoint):
        report = evaluate_file(checkpoint, data, data_dir, device, per_class, recalibrate, skip_bad)
    print_skipped(report.skipped)
    models = [
        {**asdict(cost), **asdict(result)} for cost, result in zip(report.costs, report.results, strict=True)
    ]
    if json:
        print_json(
            {"data": report.data, "images": report.images, "models": _with_classes(models, report.classes)}
        )
        return
    print_models(models, f"{checkpoint} on {report.images:,} test images of {report.data}")
    for name, classes in report.classes.items():
        rows = [
            (c.class_name, f"{c.precision:.2%}", f"{c.recall:.2%}", f"{c.f1:.4f}", f"{c.images:,}")
            for c in classes
        ]
        print_table(("class", "precision", "recall", "F1", "images"), rows, name)


def _with_classes(
    models: list[dict[str, Any]], classes: "dict[str, list[ClassResult]]"
) -> list[dict[str, Any]]:
    if not classes:
        return models
    return [{**model, "classes": [asdict(c) for c in classes[model["name"]]]} for model in models]
