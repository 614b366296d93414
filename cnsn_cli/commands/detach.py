"""`cnsn detach`: a sub-model as a file of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.commands.options import DataDir, Force, Json, Recalibrate
from cnsn_cli.commands.output import print_json, printable

if TYPE_CHECKING:
    from cnsn_cli.metadata import Metadata


def detach(
    checkpoint: Annotated[Path, typer.Argument(help="A network, as cnsn train writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; a folder with --all.")],
    submodel: Annotated[str | None, typer.Option(help="A number such as 1, or base.")] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="Take the most accurate model with at most so many MACs, such as 150M.")
    ] = None,
    all_models: Annotated[bool, typer.Option("--all", help="Write every model into the folder.")] = False,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Make BN part of the convs: faster, but no longer trainable.")
    ] = False,
    recalibrate: Recalibrate = 0,
    data: Annotated[
        str | None,
        typer.Option(help="With --recalibrate: the images; default: what the network was trained on."),
    ] = None,
    data_dir: DataDir = Path("data"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a sub-model as a stand-alone file: its step-down conv, the kept layers and the head."""
    from cnsn_cli import detaching

    if sum([submodel is not None, max_macs is not None, all_models]) != 1:
        raise typer.BadParameter("give one of --submodel, --max-macs and --all")
    options: dict[str, Any] = {
        "fold_bn": fold_bn,
        "recalibrate": recalibrate,
        "data": data,
        "data_dir": data_dir,
    }
    if all_models:
        written = detaching.detach_all(checkpoint, output, force, **options)
    else:
        name = (
            submodel
            if submodel is not None
            else detaching.most_accurate(checkpoint, _parse_count(max_macs or ""))
        )
        written = {output: detaching.detach(checkpoint, name, output, force, **options)}
    _report(written, json)


def _parse_count(text: str) -> int:
    factors = {"K": 10**3, "M": 10**6, "G": 10**9}
    factor = factors.get(text[-1:].upper(), 1)
    try:
        return round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no number such as 150M or 0.15G") from None


def _report(written: "dict[Path, Metadata]", json: bool) -> None:
    if json:
        models = [
            {"file": str(path), **metadata.models[0].model_dump(exclude_none=True)}
            for path, metadata in written.items()
        ]
        print_json({"models": models})
        return
    for path, metadata in written.items():
        print(_sentence(path, metadata))


def _sentence(path: Path, metadata: "Metadata") -> str:
    """One line a file. A table would need rich, which takes a tenth of the time of the command to load."""
    model = metadata.models[0]
    facts = [f"{model.macs / 1e6:,.1f} M MACs", f"{path.stat().st_size / 2**20:,.2f} MiB"]
    if model.accuracy is not None and metadata.selection:
        facts.append(f"accuracy {model.accuracy:.2%} on the {metadata.selection.images} images")
    return f"written: {printable(str(path))}: {model.name}, {', '.join(facts)}"
