"""`cnsn detach`: a sub-model as a file of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnsn_cli.commands.options import Force, Json, MaxBytes, MaxMacs, limits
from cnsn_cli.commands.output import print_json, printable

if TYPE_CHECKING:
    from cnsn_cli.metadata import Metadata


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
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a sub-model as a stand-alone file: its step-down conv, the kept layers and the head.

    With limits, the most accurate model that keeps them all.
    """
    budget = limits(max_macs, max_bytes, max_latency, min_accuracy)
    from cnsn_cli import detaching

    if sum([submodel is not None, bool(budget), all_models]) != 1:
        raise typer.BadParameter("give one of --submodel, --all and limits such as --max-macs")
    choice = detaching.choose_model(checkpoint, budget) if budget else None
    if all_models:
        written = detaching.detach_all(checkpoint, output, force, fold_bn)
    else:
        name = choice.name if choice else submodel or ""
        written = {output: detaching.detach(checkpoint, name, output, force, fold_bn)}
    _report(written, choice and choice.reason, json)


def _report(written: "dict[Path, Metadata]", reason: str | None, json: bool) -> None:
    if json:
        models = [
            {"file": str(path), **metadata.models[0].model_dump(exclude_none=True)}
            for path, metadata in written.items()
        ]
        print_json({"models": models} | ({"reason": reason} if reason else {}))
        return
    if reason:
        print(f"chosen: {reason}")
    for path, metadata in written.items():
        print(_sentence(path, metadata))


def _sentence(path: Path, metadata: "Metadata") -> str:
    """One line a file. A table would need rich, which takes a tenth of the time of the command to load."""
    model = metadata.models[0]
    facts = [f"{model.macs / 1e6:,.1f} M MACs", f"{path.stat().st_size / 2**20:,.2f} MiB"]
    if model.accuracy is not None and metadata.selection:
        facts.append(f"accuracy {model.accuracy:.2%} on the {metadata.selection.images} images")
    return f"written: {printable(str(path))}: {model.name}, {', '.join(facts)}"
