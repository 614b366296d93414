"""`cnsn eval`: accuracy and loss of every model in a file."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.commands.options import (
    Data,
    DataDir,
    Device,
    Force,
    ImageColumn,
    Json,
    LabelColumn,
    Plugin,
    Recalibrate,
    SkipBad,
    model_file,
)
from cnsn_cli.commands.output import (
    print_json,
    print_models,
    print_notes,
    print_skipped,
    print_table,
    printable,
)
from cnsn_cli.commands.signals import ended_by_signals
from cnsn_cli.data.origin import Origin

if TYPE_CHECKING:
    from cnsn_cli.evaluation.accuracy import Report


def evaluate(
    checkpoint: Annotated[Path, model_file("A network, a detached model, or an exported .onnx.")],
    data: Data = None,
    data_dir: DataDir = Path("data"),
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    device: Device = "auto",
    per_class: Annotated[bool, typer.Option(help="Also show precision and recall of every class.")] = False,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also count which classes are taken for which.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --confusion: a picture to write; it ends in .png or .svg."),
    ] = None,
    recalibrate: Recalibrate = 0,
    skip_bad: SkipBad = False,
    force: Force = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Measure accuracy and loss of every model in a file on the test images."""
    if output is not None and not confusion:
        raise typer.BadParameter("-o goes with --confusion")
    from cnsn_cli.evaluation.accuracy import evaluate_file
    from cnsn_cli.evaluation.confusion_picture import check_picture, draw_confusions

    if output is not None:
        check_picture(output, force)
    origin = Origin(data, data_dir, image_column, label_column)
    with ended_by_signals(checkpoint):
        report = evaluate_file(checkpoint, origin, device, per_class, recalibrate, skip_bad, confusion)
    print_notes(report.notes)
    print_skipped(report.skipped)
    if output is not None:
        draw_confusions(report.confusions, report.class_names, output, force)
    models = [
        {**asdict(cost), **asdict(result)} for cost, result in zip(report.costs, report.results, strict=True)
    ]
    if json:
        print_json({"data": report.data, "images": report.images, "models": _with_more(models, report)})
        return
    print_models(models, f"{checkpoint} on {report.images:,} test images of {report.data}")
    for name, classes in report.classes.items():
        rows = [
            (c.class_name, f"{c.precision:.2%}", f"{c.recall:.2%}", f"{c.f1:.4f}", f"{c.images:,}")
            for c in classes
        ]
        print_table(("class", "precision", "recall", "F1", "images"), rows, name)
    for name, counts in report.confusions.items():
        columns = ("true class", *report.class_names)
        matrix = [
            (true, *(f"{count:,}" for count in row))
            for true, row in zip(report.class_names, counts, strict=True)
        ]
        print_table(columns, matrix, f"{name}: a row for each true class, a column for each predicted class")
    if output is not None:
        print(f"written: {printable(str(output))}")


def _with_more(models: list[dict[str, Any]], report: "Report") -> list[dict[str, Any]]:
    """The models with what was asked for: results for each class, and the confusion of classes."""
    for model in models:
        if report.classes:
            model["classes"] = [asdict(c) for c in report.classes[model["name"]]]
        if report.confusions:
            model["confusion"] = report.confusions[model["name"]]
    return models
