"""`cnsn detach`: a sub-model as a file of its own."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.choices import Half
from cnsn_cli.commands.options import (
    Data,
    DataDir,
    Force,
    Json,
    MaxBytes,
    MaxMacs,
    Plugin,
    Recalibrate,
    limits,
)
from cnsn_cli.commands.output import print_comparison, print_json, printable

if TYPE_CHECKING:
    from cnsn_cli.deploy.comparison import Comparison
    from cnsn_cli.files.metadata import Metadata


def detach(
    checkpoint: Annotated[Path, typer.Argument(help="A network, as cnsn train writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; a folder with --all.")],
    submodel: Annotated[str | None, typer.Option(help="A number such as 1, or base.")] = None,
    max_macs: MaxMacs = None,
    max_bytes: MaxBytes = None,
    max_latency: Annotated[
        str | None, typer.Option(help="At most so long for an image on one thread here, such as 5ms.")
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="At least so accurate, such as 0.9; alone: the smallest."),
    ] = None,
    all_models: Annotated[bool, typer.Option("--all", help="Write every model into the folder.")] = False,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Make BN part of the convs: faster, but no longer trainable.")
    ] = False,
    recalibrate: Recalibrate = 0,
    dtype: Annotated[
        Half | None,
        typer.Option(help="Store weights in two bytes instead of four, and measure what that costs."),
    ] = None,
    data: Data = None,
    data_dir: DataDir = Path("data"),
    force: Force = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Write a sub-model as a stand-alone file: its step-down conv, the kept layers and the head.

    With limits, the most accurate model that keeps them all.
    """
    budget = limits(max_macs, max_bytes, max_latency, min_accuracy)
    from cnsn_cli.deploy import detach as detaching

    if sum([submodel is not None, bool(budget), all_models]) != 1:
        raise typer.BadParameter("give one of --submodel, --all and limits such as --max-macs")
    if dtype and all_models:
        raise typer.BadParameter("--dtype goes with one model, not with --all")
    choice = detaching.choose_model(checkpoint, budget) if budget else None
    comparison = None
    name = choice.name if choice else submodel or ""
    options: dict[str, Any] = {"fold_bn": fold_bn, "recalibrate": recalibrate}
    options |= {"data": data, "data_dir": data_dir}
    if all_models:
        written = detaching.detach_all(checkpoint, output, force, **options)
    elif dtype:
        from cnsn_cli.deploy.half import detach_half

        metadata, comparison = detach_half(checkpoint, name, output, dtype, force, **options)
        written = {output: metadata}
    else:
        written = {output: detaching.detach(checkpoint, name, output, force, **options)}
    _report(written, choice and choice.reason, comparison, json)


def _report(
    written: "dict[Path, Metadata]", reason: str | None, comparison: "Comparison | None", json: bool
) -> None:
    if json:
        models = [
            {"file": str(path), **metadata.models[0].model_dump(exclude_none=True)}
            for path, metadata in written.items()
        ]
        extra = {"reason": reason, "comparison": comparison and asdict(comparison)}
        print_json({"models": models} | {key: value for key, value in extra.items() if value})
        return
    if reason:
        print(f"chosen: {reason}")
    for path, metadata in written.items():
        print(_sentence(path, metadata))
        if comparison:
            print_comparison(comparison, metadata.dtype)


def _sentence(path: Path, metadata: "Metadata") -> str:
    """One line a file. A table would need rich, which takes a tenth of the time of the command to load."""
    model = metadata.models[0]
    facts = [f"{model.macs / 1e6:,.1f} M MACs", f"{path.stat().st_size / 2**20:,.2f} MiB"]
    if model.accuracy is not None and metadata.selection:
        facts.append(f"accuracy {model.accuracy:.2%} on the {metadata.selection.images} images")
    return f"written: {printable(str(path))}: {model.name}, {', '.join(facts)}"
