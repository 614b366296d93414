"""`cnsn predict`: the classes that a model predicts for pictures."""

import csv as csv_format
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnsn_cli.commands.options import Device, Json, Plugin, SkipBad, Submodel, model_file
from cnsn_cli.commands.output import print_json, print_notes, print_skipped, print_table, printable
from cnsn_cli.commands.signals import ended_by_signals

if TYPE_CHECKING:
    from cnsn_cli.evaluation.prediction import Prediction

HEADINGS = ("image", "class", "probability")


def predict(
    file: Annotated[Path, model_file("A network, a detached model, or an exported .onnx.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    submodel: Submodel = None,
    top: Annotated[int, typer.Option(min=1, help="The number of classes to show for each picture.")] = 5,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a line for each class, after a line of headings.")
    ] = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Show the most likely classes of pictures."""
    if csv and json:
        raise typer.BadParameter("give --csv or --json, not both")
    from cnsn_cli.evaluation.prediction import predict as most_likely

    with ended_by_signals(file):
        found = most_likely(file, images, submodel, top, device, skip_bad)
    print_notes(found.notes)
    print_skipped(found.skipped)
    if json:
        rows = [
            {"image": str(p.image), "classes": [asdict(guess) for guess in p.guesses]} for p in found.images
        ]
        skipped = {"skipped": list(found.skipped)} if found.skipped else {}
        print_json({"file": str(file), "model": found.model, "images": rows, **skipped})
        return
    if csv:
        _print_csv(found.images)
        return
    table = [row for prediction in found.images for row in _rows(prediction)]
    print_table(HEADINGS, table, f"{found.model} of {file}", texts=(0, 1))


def _print_csv(predictions: "list[Prediction]") -> None:
    """Every line names its picture, and probabilities are 0..1 with all digits."""
    writer = csv_format.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADINGS)
    for prediction in predictions:
        for guess in prediction.guesses:
            names = printable(str(prediction.image)), printable(guess.class_name)
            writer.writerow((*names, repr(guess.probability)))


def _rows(prediction: "Prediction") -> list[tuple[str, str, str]]:
    """A row for each class; only the first row names the picture."""
    names = [str(prediction.image), *[""] * (len(prediction.guesses) - 1)]
    guesses = zip(names, prediction.guesses, strict=True)
    return [(name, guess.class_name, f"{guess.probability:.2%}") for name, guess in guesses]
