"""`cnsn export`: a model for runtimes that know nothing of cnsn."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cnsn_cli.commands.options import Force, Json, Submodel
from cnsn_cli.commands.output import print_json, printable


def export(
    file: Annotated[Path, typer.Argument(help="A network, or a detached model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    to: Annotated[Literal["onnx", "pt2"], typer.Option(help="For ONNX runtimes, or for torch.export.")],
    submodel: Submodel = None,
    with_preprocess: Annotated[
        bool, typer.Option("--with-preprocess", help="Take pixels 0 to 255: normalise inside the file.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a model as ONNX or .pt2, and check that it returns the logits of PyTorch."""
    from cnsn_cli import exporting

    written = exporting.export(file, to, output, submodel, with_preprocess, force)
    model = written.metadata.models[0]
    if json:
        facts = {"file": str(output), "bytes": written.bytes, "opset": written.opset}
        print_json({**facts, "difference": written.difference, "model": model.model_dump(exclude_none=True)})
        return
    print(f"written: {printable(str(output))}: {model.name}, {written.bytes / 2**20:,.2f} MiB", end="")
    print("" if written.opset is None else f", opset {written.opset}")
    print(
        f"checked: the logits of 10 random images differ from PyTorch's by {written.difference:.1e} at most"
    )
