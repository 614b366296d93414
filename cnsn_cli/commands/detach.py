"""`cnsn detach`: writes a sub-model as a file of its own."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.choices import Half
from cnsn_cli.commands.options import (
    Data,
    DataDir,
    Force,
    ImageColumn,
    Json,
    LabelColumn,
    MaxBytes,
    MaxMacs,
    Plugin,
    Recalibrate,
    limits,
    model_file,
)
from cnsn_cli.commands.output import print_comparison, print_json, printable
from cnsn_cli.data.origin import Origin

if TYPE_CHECKING:
    from cnsn_cli.deploy.budget import Budget, Choice
    from cnsn_cli.deploy.changes import Changes, Recalibration
    from cnsn_cli.deploy.comparison import Comparison
    from cnsn_cli.files.metadata import Metadata


def detach(
    checkpoint: Annotated[Path, model_file("A network, as cnsn train writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; a folder with --all.")],
    submodel: Annotated[str | None, typer.Option(help="A number such as 1, or base.")] = None,
    max_macs: MaxMacs = None,
    max_bytes: MaxBytes = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Limit: time for one image on one thread of this machine, such as 5ms.")
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Least accuracy, such as 0.9; as the only limit: the smallest model."
        ),
    ] = None,
    all_models: Annotated[bool, typer.Option("--all", help="Write every model into a folder.")] = False,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Make BN part of the convs: faster, but no longer trainable.")
    ] = False,
    recalibrate: Recalibrate = 0,
    dtype: Annotated[
        Half | None,
        typer.Option(help="Store weights in two bytes instead of four, and measure the loss of accuracy."),
    ] = None,
    data: Data = None,
    data_dir: DataDir = Path("data"),
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    force: Force = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Write a sub-model as a stand-alone file: its step-down conv, the kept layers and the head.

    With limits, write the most accurate model that meets all of them.
    """
    budget = limits(max_macs, max_bytes, max_latency, min_accuracy)
    if sum([submodel is not None, bool(budget), all_models]) != 1:
        raise typer.BadParameter("give one of --submodel, --all and limits such as --max-macs")
    if dtype and all_models:
        raise typer.BadParameter("--dtype goes with one model, not with --all")
    from cnsn_cli.deploy.changes import Changes
    from cnsn_cli.deploy.detach import detach_all

    measured: list[Recalibration] = []
    origin = Origin(data, data_dir, image_column, label_column)
    changes = Changes(fold_bn, recalibrate, origin, measured.append)
    if all_models:
        _report(detach_all(checkpoint, output, force, changes), measured, None, None, json)
        return
    choice, metadata, comparison = _detach_one(checkpoint, submodel or budget, output, dtype, force, changes)
    _report({output: metadata}, measured, choice and choice.reason, comparison, json)


def _detach_one(
    checkpoint: Path,
    wanted: "str | Budget",
    output: Path,
    dtype: Half | None,
    force: bool,
    changes: "Changes",
) -> "tuple[Choice | None, Metadata, Comparison | None]":
    """Write the model called `wanted`, or the best model within these limits. The file is opened once."""
    from cnsn_cli.deploy.detach import choose_from, detach_from
    from cnsn_cli.files.tensor_file import TensorFile

    with TensorFile(checkpoint) as file:
        choice = None if isinstance(wanted, str) else choose_from(file, wanted)
        name = choice.name if choice else str(wanted)
        if dtype is None:
            return choice, detach_from(file, name, output, force, changes), None
        from cnsn_cli.deploy.recompute import half_from

        return choice, *half_from(file, name, output, dtype, force, changes)


def _report(
    written: "dict[Path, Metadata]",
    measured: "list[Recalibration]",
    reason: str | None,
    comparison: "Comparison | None",
    json: bool,
) -> None:
    if json:
        models = [
            {"file": str(path), **metadata.models[0].model_dump(exclude_none=True)}
            for path, metadata in written.items()
        ]
        extra: dict[str, Any] = {"reason": reason, "comparison": comparison and asdict(comparison)}
        extra["recalibrated"] = [recalibration._asdict() for recalibration in measured]
        print_json({"models": models} | {key: value for key, value in extra.items() if value})
        return
    if reason:
        print(f"chosen: {reason}")
    for name, images, before, after in measured:
        print(
            f"recalibrated: {name}: accuracy {before:.2%} before, {after:.2%} after, {images:,} test images"
        )
    for path, metadata in written.items():
        print(_sentence(path, metadata))
        if comparison:
            print_comparison(comparison, metadata.dtype)


def _sentence(path: Path, metadata: "Metadata") -> str:
    """A line about a file. A table would need rich, and loading rich takes a tenth of the command's time."""
    model = metadata.models[0]
    facts = [f"{model.macs / 1e6:,.1f} M MACs", f"{path.stat().st_size / 2**20:,.2f} MiB"]
    if model.accuracy is not None and metadata.selection:
        facts.append(f"accuracy {model.accuracy:.2%} on the {metadata.selection.images} images")
    return f"written: {printable(str(path))}: {model.name}, {', '.join(facts)}"
