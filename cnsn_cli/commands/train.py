"""`cnsn train`: base-model and sub-models in one run."""

import re
import shlex
import sys
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cnsn_cli.commands.hyperparameters import with_hyperparameters
from cnsn_cli.commands.options import (
    DataDir,
    Device,
    Force,
    ImageSize,
    InChannels,
    Json,
    SkipBad,
    parse_exits,
)
from cnsn_cli.commands.output import print_json, print_models, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnsn_cli.recipe import Recipe
    from cnsn_cli.run import Run, Watch


@with_hyperparameters
def train(
    overrides: dict[str, Any],
    arch: Annotated[
        str | None, typer.Option(help="An architecture, such as vgg16:width=0.5; see cnsn archs.")
    ] = None,
    exits: Annotated[
        str | None, typer.Option(help='Detach points such as 2,7; "" trains the plain baseline.')
    ] = None,
    drop: Annotated[
        int | None,
        typer.Option(help="In place of --exits: train the sub-model at this detach point alone."),
    ] = None,
    freeze_base: Annotated[
        Path | None, typer.Option(help="A file whose base-model gets sub-models and stays as it is.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="cifar10, cifar100, digits, or a folder with train/ and test/ or val/.")
    ] = "cifar10",
    data_dir: DataDir = Path("data"),
    recipe: Annotated[str, typer.Option(help="paper, best, fast, quick, or a TOML file.")] = "paper",
    out: Annotated[
        Path | None, typer.Option(help="The run folder.", show_default="runs/<arch>-<data>-<time>")
    ] = None,
    force: Force = False,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option(show_default="bf16 on CUDA, else fp32")
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Let torch.compile fuse the forward pass.", show_default="on CUDA"
        ),
    ] = None,
    image_size: ImageSize = None,
    in_channels: InChannels = 3,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes; an error where the data has others.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder; all else is taken from there.")
    ] = None,
    override: Annotated[
        bool, typer.Option("--override", help="With --resume: on another device or other versions too.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a network together with its sub-models, and write a run folder."""
    if resume is not None:
        if overrides or (arch, exits, drop, freeze_base, out) != (None,) * 5:
            raise typer.BadParameter("--resume goes with --override and --json alone: the run knows the rest")
        report(_resume(resume, override), json)
        return
    if arch is None and freeze_base is not None:
        arch = _arch_of(freeze_base)
    if arch is None or (exits is None) == (drop is None):
        raise typer.BadParameter("give --arch and --exits, --arch and --drop, or --resume")
    if drop is not None and freeze_base is not None:
        raise typer.BadParameter("--drop trains a sub-model alone: there is no base-model to freeze")
    cuts = parse_exits(exits or "")
    from cnsn_cli.recipe import load_recipe
    from cnsn_cli.run import train as run

    chosen = load_recipe(recipe, overrides, baseline=not cuts)
    folder = out or default_folder(arch, data)
    with _watched(folder, chosen) as watch:
        finished = run(
            arch,
            cuts,
            data,
            chosen,
            folder,
            drop=drop,
            freeze_base=freeze_base,
            data_dir=data_dir,
            image_size=image_size,
            in_channels=in_channels,
            classes=classes,
            device=device,
            precision=precision,
            compiled=compiled,
            force=force,
            skip_bad=skip_bad,
            watch=watch,
        )
    report(finished, json)


def _arch_of(checkpoint: Path) -> str:
    from cnsn_cli.metadata import read_metadata
    from cnsn_cli.tensorfile import read_header

    return read_metadata(checkpoint, read_header(checkpoint)).arch


def _resume(folder: Path, override: bool) -> "Run":
    from cnsn_cli.run import resume
    from cnsn_cli.state import read_state

    state = read_state(folder / "state.safetensors")
    if state.epoch == state.request.recipe.epochs:
        print(f"{printable(str(folder))} is finished: nothing is left to train", file=sys.stderr)
    with _watched(folder, state.request.recipe) as watch:
        return resume(folder, override, watch)


@contextmanager
def _watched(folder: Path, recipe: "Recipe") -> "Iterator[Watch]":
    """Progress on stderr, and a word on how to go on where the user stops it."""
    from cnsn_cli.commands.progress import progress

    try:
        with progress(recipe) as watch:
            yield watch
    except KeyboardInterrupt:
        if (folder / "state.safetensors").exists():
            name = shlex.quote(printable(str(folder)))
            print(
                f"stopped; to go on after the last whole epoch: cnsn train --resume {name}", file=sys.stderr
            )
        raise


def default_folder(arch: str, data: str) -> Path:
    """runs/<arch>-<data>-<time>"""
    name = re.sub(r"[^\w.=]+", "-", f"{arch}-{Path(data).name}")
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def report(run: "Run", json: bool) -> None:
    models: list[dict[str, Any]] = [model.model_dump() for model in run.models]
    if json:
        content = {"folder": str(run.folder), "best_epoch": run.best_epoch, "selected_on": run.selection}
        print_json({**content, "models": models})
        return
    print_models(
        models,
        f"best epoch: {run.best_epoch}, chosen on the {run.selection} images; accuracy on the test images",
    )
    print(f"written: {printable(str(run.folder))}/best.safetensors, last.safetensors, metrics.jsonl")
