"""`cnsn train`: base-model and sub-models in one run."""

import re
import shlex
import sys
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cnsn_cli.commands.options import DataDir, Device, Force, ImageSize, InChannels, Json, parse_exits
from cnsn_cli.commands.output import print_json, print_models, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnsn_cli.recipe import Recipe
    from cnsn_cli.run import Run, Watch

PANEL = "Hyper-parameters (each overrides the recipe)"


def train(
    arch: Annotated[
        str | None, typer.Option(help="An architecture, such as vgg16:width=0.5; see cnsn archs.")
    ] = None,
    exits: Annotated[
        str | None, typer.Option(help='Detach points such as 2,7; "" trains the plain baseline.')
    ] = None,
    data: Annotated[
        str, typer.Option(help="cifar10, cifar100, digits, or a folder with train/ and test/ or val/.")
    ] = "cifar10",
    data_dir: DataDir = Path("data"),
    recipe: Annotated[str, typer.Option(help="paper, quick, or a TOML file.")] = "paper",
    out: Annotated[
        Path | None, typer.Option(help="The run folder.", show_default="runs/<arch>-<data>-<time>")
    ] = None,
    force: Force = False,
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
    epochs: Annotated[int | None, typer.Option(rich_help_panel=PANEL)] = None,
    batch_size: Annotated[int | None, typer.Option(rich_help_panel=PANEL)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", rich_help_panel=PANEL)] = None,
    momentum: Annotated[float | None, typer.Option(rich_help_panel=PANEL)] = None,
    weight_decay: Annotated[float | None, typer.Option(rich_help_panel=PANEL)] = None,
    schedule: Annotated[str | None, typer.Option(help="step or one-cycle.", rich_help_panel=PANEL)] = None,
    milestones: Annotated[
        str | None, typer.Option(help="Epochs such as 50,100 after which lr falls.", rich_help_panel=PANEL)
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="By what it falls then.", rich_help_panel=PANEL)] = None,
    warmup_epochs: Annotated[float | None, typer.Option(rich_help_panel=PANEL)] = None,
    crop_padding: Annotated[
        int | None, typer.Option(help="Pixels to pad before a random crop.", rich_help_panel=PANEL)
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Random mirror images.", rich_help_panel=PANEL)
    ] = None,
    val_split: Annotated[
        float | None,
        typer.Option(help="Share of training images that select the best epoch.", rich_help_panel=PANEL),
    ] = None,
    bn: Annotated[
        str | None, typer.Option(help="BN statistics: private or shared.", rich_help_panel=PANEL)
    ] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=PANEL)] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder; all else is taken from there.")
    ] = None,
    override: Annotated[
        bool, typer.Option("--override", help="With --resume: on another device or other versions too.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a network together with its sub-models, and write a run folder."""
    flags = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "milestones": None if milestones is None else parse_exits(milestones),
        "gamma": gamma,
        "warmup_epochs": warmup_epochs,
        "crop_padding": crop_padding,
        "flip": flip,
        "val_split": val_split,
        "bn": bn,
        "seed": seed,
    }
    overrides = {key: value for key, value in flags.items() if value is not None}
    if resume is not None:
        if overrides or (arch, exits, out) != (None, None, None):
            raise typer.BadParameter("--resume goes with --override and --json alone: the run knows the rest")
        report(_resume(resume, override), json)
        return
    if arch is None or exits is None:
        raise typer.BadParameter("give --arch and --exits, or --resume")
    cuts = parse_exits(exits)
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
            data_dir=data_dir,
            image_size=image_size,
            in_channels=in_channels,
            classes=classes,
            device=device,
            precision=precision,
            compiled=compiled,
            force=force,
            watch=watch,
        )
    report(finished, json)


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
    print(
        f"written: {printable(str(run.folder))}/best.safetensors, last.safetensors, metrics.jsonl, plot.png"
    )
