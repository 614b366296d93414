"""`cnsn train`: base-model and sub-models in one run."""

import re
import shlex
import sys
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cnsn_cli import distributed
from cnsn_cli.backbones.registry import find_typed
from cnsn_cli.commands.hyperparameters import with_hyperparameters
from cnsn_cli.commands.options import (
    DataDir,
    Device,
    Force,
    ImageSize,
    InChannels,
    Json,
    Plugin,
    SkipBad,
    parse_exits,
)
from cnsn_cli.commands.output import print_json, print_models, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnsn_cli.training.recipe import Recipe
    from cnsn_cli.training.run import Run, Watch


@with_hyperparameters
def train(
    context: typer.Context,
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
    init: Annotated[
        Path | None,
        typer.Option(help="Start with the weights in this .safetensors file, of the original network."),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start with the weights that torchvision or timm publish.")
    ] = False,
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
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Repeatable bit for bit on CUDA too, and slower.")
    ] = False,
    save_every: Annotated[
        str, typer.Option(help="Save the state after so many steps (500) or minutes (10m) too.")
    ] = "10m",
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, which knows all the rest.")
    ] = None,
    override: Annotated[
        bool, typer.Option("--override", help="With --resume: go on although something differs.")
    ] = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Train a network together with its sub-models, and write a run folder."""
    architecture = None if arch is None else find_typed(arch)
    cuts = parse_exits(exits or "")
    options: dict[str, Any] = {
        "drop": drop,
        "freeze_base": None if freeze_base is None else str(freeze_base),
        "init": None if init is None else str(init),
        "pretrained": pretrained,
        "data_dir": str(data_dir),
        "image_size": image_size,
        "in_channels": in_channels,
        "device": device,
        "precision": precision,
        "compiled": compiled,
        "deterministic": deterministic,
        "save_every": save_every,
        "skip_bad": skip_bad,
    }
    if resume is not None:
        given = _given(context)
        if wrong := given & {"out", "force", "classes"}:
            raise typer.BadParameter(
                f"--resume goes without {', '.join(f'--{name}' for name in sorted(wrong))}"
            )
        own = {"arch": arch, "exits": cuts, "data": data, **options}
        changes = {name: value for name, value in own.items() if name in given}
        another = recipe if "recipe" in given else None
        report(_resume(resume, changes, another, overrides, override), json)
        return
    if arch is None and freeze_base is not None:
        arch = _arch_of(freeze_base)
    if arch is None or (exits is None) == (drop is None):
        raise typer.BadParameter("give --arch and --exits, --arch and --drop, or --resume")
    if drop is not None and freeze_base is not None:
        raise typer.BadParameter("--drop trains a sub-model alone: there is no base-model to freeze")
    from cnsn_cli.training.recipe import load_recipe
    from cnsn_cli.training.run import train as run

    chosen = load_recipe(recipe, overrides, baseline=not cuts and drop is None)
    folder = out or default_folder(arch, data)
    with _watched(folder, chosen) as watch:
        finished = run(
            architecture or arch,
            cuts,
            data,
            chosen,
            folder,
            classes=classes,
            force=force,
            watch=watch,
            **options,
        )
    report(finished, json)


def _given(context: typer.Context) -> set[str]:
    """The names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _arch_of(checkpoint: Path) -> str:
    from cnsn_cli.files.metadata import read_metadata
    from cnsn_cli.files.tensor_file import read_header

    return read_metadata(checkpoint, read_header(checkpoint)).arch


def _resume(
    folder: Path, changes: dict[str, Any], recipe: str | None, overrides: dict[str, Any], override: bool
) -> "Run":
    """Go on with a run; a `recipe` by name changes all its settings, `overrides` only some."""
    from cnsn_cli.training.recipe import load_recipe
    from cnsn_cli.training.resume_state import STATE, read_state
    from cnsn_cli.training.run import resume

    state = read_state(folder / STATE)
    old = state.request
    if recipe is not None:
        baseline = not old.exits and old.drop is None
        overrides = load_recipe(recipe, overrides, baseline=baseline).model_dump()
    changes = {**changes, **overrides}
    chosen = old.with_changes(changes).recipe
    if state.epoch >= chosen.epochs:
        print(f"{printable(str(folder))} is finished: nothing is left to train", file=sys.stderr)
    with _watched(folder, chosen) as watch:
        return resume(folder, changes, override, watch)


@contextmanager
def _watched(folder: Path, recipe: "Recipe") -> "Iterator[Watch]":
    """Progress on stderr, and a word on how to go on where a signal stops it."""
    from cnsn_cli.commands.progress import progress
    from cnsn_cli.training.resume_state import STATE
    from cnsn_cli.training.signals import Stopped

    try:
        with progress(recipe) as watch:
            yield watch
    except (KeyboardInterrupt, SystemExit) as stop:
        if (folder / STATE).exists():
            name = shlex.quote(printable(str(folder)))
            program = "torchrun, as before, with -m cnsn_cli" if distributed.launched() else "cnsn"
            print(f"stopped; to go on: {program} train --resume {name}", file=sys.stderr)
        if isinstance(stop, Stopped):
            raise typer.Exit(128 + stop.number) from stop
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
