"""`cnsn predict`: the classes that a model predicts for pictures."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnsn_cli.commands.options import Device, Json, Plugin, Submodel
from cnsn_cli.commands.output import print_json, print_table
from cnsn_cli.commands.signals import ended_by_signals

if TYPE_CHECKING:
    from cnsn_cli.evaluation.prediction import Prediction


def predict(
    file: Annotated[Path, typer.Argument(help="A network, a detached model, or an exported .onnx.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    submodel: Submodel = None,
    top: Annotated[int, typer.Option(min=1, help="The number of classes to show for each picture.")] = 5,
    device: Device = "auto",
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Show the most likely classes of pictures."""
    from cnsn_cli.evaluation.prediction import predict_images

    with ended_by_signals(file):
        model, predictions = predict_images(file, images, submodel, top, device)
    if json:
        rows = [
            {"image": str(p.image), "classes": [asdict(guess) for guess in p.guesses]} for p in predictions
        ]
        print_json({"file": str(file), "model": model, "images": rows})
        return
    table = [row for prediction in predictions for row in _rows(prediction)]
    print_table(("image", "class", "probability"), table, f"{model} of {file}", texts=(0, 1))


def _rows(prediction: "Prediction") -> list[tuple[str, str, str]]:
    """A row for each class; only the first row names the picture."""
    names = [str(prediction.image), *[""] * (len(prediction.guesses) - 1)]
    guesses = zip(names, prediction.guesses, strict=True)
    return [(name, guess.class_name, f"{guess.probability:.2%}") for name, guess in guesses]
