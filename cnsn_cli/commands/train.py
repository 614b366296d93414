"""`cnsn train`: trains the base-model and the sub-models in one run, or resumes a run."""

import sys
from collections.abc import Mapping
from dataclasses import Field
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import typer

from cnsn_cli.backbones import registry
from cnsn_cli.commands.forecast import print_forecast
from cnsn_cli.commands.help import Command
from cnsn_cli.commands.hyperparameters import (
    OPTIONS,
    given_hyperparameters,
    values_in_recipes,
    with_hyperparameters,
)
from cnsn_cli.commands.listed import option, with_listed
from cnsn_cli.commands.new_run import DATA, Asked, asked_of
from cnsn_cli.commands.options import Json, Plugin, given, parse_exits, refuse
from cnsn_cli.commands.output import print_json, print_models, printable
from cnsn_cli.commands.watched import watched
from cnsn_cli.stages import stage
from cnsn_cli.training.arguments import TYPED

if TYPE_CHECKING:
    from cnsn_cli.training.dry_run import Forecast
    from cnsn_cli.training.run import Run

NOT_WITH_RESUME = {"out", "force", "classes", "profile", "dry_run"}
PANELS = {
    "Network": ("arch", "exits", "drop", "plugin"),
    "Data": (
        "data",
        "image_column",
        "label_column",
        "test_data",
        "data_dir",
        "image_size",
        "in_channels",
        "classes",
        "skip_bad",
        "limit_images",
    ),
    "Start": ("freeze_base", "init", "pretrained"),
    "Recipe": ("recipe", *OPTIONS),
    "Output and resume": (
        "out",
        "force",
        "dry_run",
        "save_every",
        "track",
        "profile",
        "resume",
        "override",
        "json",
        "help",
    ),
    "Hardware": ("device", "precision", "compiled", "capture", "deterministic"),
}


class TrainCommand(Command):
    """`cnsn train`, whose help has the value of each hyper-parameter in each recipe."""

    panels: ClassVar[Mapping[str, str]] = {name: title for title, names in PANELS.items() for name in names}

    def meaning(self, name: str, text: str) -> str:
        return f"{text}  [{values_in_recipes(name)}]" if name in OPTIONS else text


def _option(argument: "Field[Any]") -> Parameter:
    """An argument of `cnsn_cli.train` as an option."""
    said, kind = argument.metadata, argument.type
    flags = said.get("flags", f"--{argument.name.replace('_', '-')}")
    if Path in get_args(kind):  # Typer takes no `str | Path`
        kind = Path | None
    elif kind == int | str | None:
        kind = str | None
    elif kind == tuple[str, ...]:
        kind = list[str]
    shown = typer.Option(
        *flags.split(),
        help=said["description"],
        show_default=said.get("default", True),
        min=said.get("ge"),
        max=said.get("le"),
        parser=said.get("parser"),
    )
    return option(argument.name, Annotated[kind, shown], argument.default)


@with_hyperparameters
@with_listed("listed", [_option(argument) for argument in TYPED])
def train(
    context: typer.Context,
    *,
    arch: Annotated[
        str | None, typer.Option(help="An architecture, such as vgg16:width=0.5; see cnsn archs.")
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            help="Sub-models, such as 2,7,@0.5: k leaves out the first k convs, @w keeps a share w of the "
            'channels, k@w does both; "" trains the plain baseline.'
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="cifar10, cifar100, digits, a folder with train/ and test/ or val/, a table.csv, or "
            "hf:NAME-OR-FOLDER of Hugging Face.",
            show_default=f"{DATA}; with --freeze-base, the data of its file",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="paper, best, fast, quick, finetune, photos (see cnsn recipes) or a TOML file; options "
            "below override it."
        ),
    ] = "paper",
    out: Annotated[
        Path | None, typer.Option(help="The run folder.", show_default="runs/<arch>-<data>-<time>")
    ] = None,
    listed: dict[str, Any],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Try a few steps, say what the run would take, and write nothing."),
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder; its state has all other options.")
    ] = None,
    override: Annotated[
        bool, typer.Option("--override", help="With --resume: go on even if something differs.")
    ] = False,
    plugin: Plugin = None,
    json: Json = False,
    hyperparameters: dict[str, Any],
) -> None:
    """Train a network together with its sub-models, and write a run folder."""
    architecture = None if arch is None else registry.find_typed(arch)
    overrides = given_hyperparameters(hyperparameters)
    options: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in listed.items()
    }
    options["track"] = _trackers(listed["track"])
    cuts = None if exits is None else parse_exits(exits)
    if resume is None:
        asked = asked_of(architecture, cuts, data, recipe, out, options, overrides)
        if dry_run:
            print_forecast(_try(asked), json)
            return
        run = _start(asked)
    else:
        typed = given(context)
        refuse(typed & NOT_WITH_RESUME, "--resume")
        own = {"arch": arch, "exits": cuts, "data": data, **options}
        changes = {name: value for name, value in own.items() if name in typed}
        run = _resume(resume, changes, recipe if "recipe" in typed else None, overrides, override)
    report(run, json)
    if took := [f"{name} {seconds:,.1f} s" for name, seconds in run.phases.items() if seconds >= 0.05]:
        print(f"time: {', '.join(took)}", file=sys.stderr)
    if run.hint:
        print(f"hint: {printable(run.hint)}", file=sys.stderr)


def _trackers(names: list[str]) -> tuple[str, ...]:
    """The names of trackers; an empty one, which ends the tracking of a resumed run, is none.

    Raises TrackerError or ExtraError, before a run would raise it after PyTorch is loaded.
    """
    from cnsn_cli.training.trackers import installed

    return tuple(installed.find([name for name in names if name]))


def _start(asked: Asked) -> "Run":
    """Start a new run."""
    with stage("loading PyTorch"):
        from cnsn_cli.training.run import train as run

    with watched(asked.out, asked.recipe) as watch:
        return run(*asked[:5], watch=watch, **asked.options)


def _try(asked: Asked) -> "Forecast":
    with stage("loading PyTorch"):
        from cnsn_cli.commands.progress import progress
        from cnsn_cli.training.dry_run import dry_run

    with progress(asked.recipe) as watch:
        return dry_run(*asked[:5], watch=watch, **asked.options)


def _resume(
    folder: Path, changes: dict[str, Any], recipe: str | None, overrides: dict[str, Any], override: bool
) -> "Run":
    """Go on with a run. A `recipe` replaces all settings of the old recipe, `overrides` replace some."""
    with stage("loading PyTorch"):
        from cnsn_cli.training.recipe import load_recipe
        from cnsn_cli.training.resume_state import read_state
        from cnsn_cli.training.run import check_kind, resume
        from cnsn_cli.training.run_folder import STATE

    state = read_state(folder / STATE)
    old = state.request
    check_kind(folder, old)
    if recipe is not None:
        baseline = not old.exits and old.drop is None
        overrides = load_recipe(recipe, overrides, baseline=baseline).model_dump()
    changes = {**changes, **overrides}
    chosen = old.with_changes(changes).recipe
    if state.epoch >= chosen.epochs:
        print(f"{printable(str(folder))} is finished: nothing is left to train", file=sys.stderr)
    with watched(folder, chosen) as watch:
        return resume(folder, changes, override, watch)


def report(run: "Run", json: bool) -> None:
    models: list[dict[str, Any]] = [model.model_dump() for model in run.models]
    if json:
        content = {"folder": str(run.folder), "best_epoch": run.best_epoch, "selected_on": run.selection}
        phases = {name: round(seconds, 3) for name, seconds in run.phases.items()}
        print_json({**content, "phases": phases, "models": models})
        return
    print_models(
        models,
        f"best epoch: {run.best_epoch}, chosen on the {run.selection} images; accuracy on the test images",
    )
    print(
        f"written: {printable(str(run.folder))}/best.safetensors, last.safetensors, metrics.jsonl, plot.png"
    )
