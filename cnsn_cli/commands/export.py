"""`cnsn export`: writes a model for runtimes that do not know cnsn."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.choices import ExportFormat, Quantization
from cnsn_cli.commands.options import (
    Data,
    DataDir,
    Force,
    ImageColumn,
    Json,
    LabelColumn,
    Plugin,
    Submodel,
    model_file,
)
from cnsn_cli.commands.output import print_comparison, print_json, printable
from cnsn_cli.data.origin import Origin
from cnsn_cli.stages import stage

if TYPE_CHECKING:
    from cnsn_cli.deploy.comparison import Comparison
    from cnsn_cli.deploy.export import Export


def export(
    file: Annotated[Path, model_file("A network, or a detached model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; a folder with --all.")],
    to: Annotated[ExportFormat, typer.Option(help="The format: ONNX, or .pt2 of torch.export.")],
    submodel: Submodel = None,
    all_models: Annotated[bool, typer.Option("--all", help="Write every model into a folder.")] = False,
    with_preprocess: Annotated[
        bool,
        typer.Option(
            "--with-preprocess", help="The exported model takes pixels 0 to 255, and normalises them."
        ),
    ] = False,
    quantize: Annotated[
        Quantization | None, typer.Option(help="Store and compute in int8; needs --to onnx.")
    ] = None,
    calibrate: Annotated[
        int, typer.Option(min=1, help="With --quantize: the number of training images that set the ranges.")
    ] = 256,
    data: Data = None,
    data_dir: DataDir = Path("data"),
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    force: Force = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Write a model as ONNX or .pt2, and check that it returns the logits of PyTorch.

    With --quantize the file is smaller and faster, but its logits differ: the loss of accuracy is measured.
    """
    if quantize and to != "onnx":
        raise typer.BadParameter("--quantize goes with --to onnx")
    if all_models and (submodel is not None or quantize):
        raise typer.BadParameter("--all goes without --submodel and --quantize")
    comparison = None
    with stage("loading PyTorch"):
        from cnsn_cli.deploy import export as exporting
    if all_models:
        _report_all(exporting.export_all(file, to, output, with_preprocess, force), json)
        return
    if quantize:
        from cnsn_cli.deploy.int8 import export_int8

        chosen = (file, output, submodel, with_preprocess, force)
        origin = Origin(data, data_dir, image_column, label_column)
        written, comparison = export_int8(*chosen, calibrate, origin)
    else:
        written = exporting.export(file, to, output, submodel, with_preprocess, force)
    _report(output, written, comparison, json)


def _report_all(written: "dict[Path, Export]", json: bool) -> None:
    if json:
        print_json({"files": [_facts(output, export) for output, export in written.items()]})
        return
    for output, export in written.items():
        _report(output, export, None, json)


def _facts(output: Path, written: "Export") -> dict[str, Any]:
    facts = {"file": str(output), "bytes": written.bytes, "opset": written.opset}
    model = written.metadata.models[0].model_dump(exclude_none=True)
    return {**facts, "difference": written.difference, "model": model}


def _report(output: Path, written: "Export", comparison: "Comparison | None", json: bool) -> None:
    if json:
        print_json(_facts(output, written) | ({"comparison": asdict(comparison)} if comparison else {}))
        return
    name = written.metadata.models[0].name
    print(f"written: {printable(str(output))}: {name}, {written.bytes / 2**20:,.2f} MiB", end="")
    print("" if written.opset is None else f", opset {written.opset}")
    if comparison:
        print_comparison(comparison, written.metadata.dtype)
    else:
        difference = f"{written.difference:.1e}"
        print(f"checked: the logits of 10 random images differ from PyTorch's by {difference} at most")
