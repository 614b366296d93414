"""`cnsn search`: which sub-models to train for some budgets."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnsn_cli.backbones import registry
from cnsn_cli.commands.new_run import DATA, default_folder
from cnsn_cli.commands.options import (
    DataDir,
    Device,
    Force,
    ImageColumn,
    ImageSize,
    Json,
    LabelColumn,
    Plugin,
    SkipBad,
    given,
    limits,
    parse_budgets,
    parse_widths,
    refuse,
)
from cnsn_cli.commands.output import print_json, print_table, printable
from cnsn_cli.commands.watched import watched
from cnsn_cli.data.origin import Origin
from cnsn_cli.files.hub import path_of
from cnsn_cli.stages import stage
from cnsn_cli.training.arguments import help_of

if TYPE_CHECKING:
    from cnsn_cli.searching.ranking import Found, Pick

PASSED_ON = (
    "arch", "plugin", "pretrained", "image_column", "label_column", "test_data", "data_dir", "image_size",
    "skip_bad", "seed",
)  # fmt: skip
MOVABLE = {"data", "data_dir", "device"}  # other places for a resumed search
ALWAYS = {"json", "plugin"}
WITH_RESUME = {"resume", "override", *MOVABLE, *ALWAYS}
WITH_FROM = {"inside", "max_macs", "widths", "image_column", "label_column", "skip_bad", *MOVABLE, *ALWAYS}
COLUMNS = ("sub-model", "drops", "width", "MACs", "parameters", "accuracy", "best for")


def search(
    context: typer.Context,
    *,
    arch: Annotated[
        str | None, typer.Option(help="An architecture, such as vgg16:width=0.5; see cnsn archs.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=help_of("data"), show_default=DATA)] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="Budgets: MACs for one image, such as 150M,80M,40M.")
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(
            help="Leave out candidates that take longer for one image on this machine, such as 5ms."
        ),
    ] = None,
    widths: Annotated[
        str, typer.Option(help='Shares of the channels to try beside all of them; "" tries depths alone.')
    ] = "0.25,0.5,0.75",
    recipe: Annotated[str, typer.Option(help="The recipe that you mean to train with.")] = "best",
    epochs: Annotated[int, typer.Option(min=1, help="How long the search trains.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The seed of weights, order, augmentation, draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the search.", show_default="runs/search-<arch>-<data>-<time>"),
    ] = None,
    force: Force = False,
    inside: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=path_of,
            metavar="<path>",
            help="Train nothing: compare all parts of this network with narrow sub-models.",
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the search in this folder.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="With --resume: go on even if something differs.")
    ] = False,
    data_dir: DataDir = Path("data"),
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    test_data: Annotated[Path | None, typer.Option(help=help_of("test_data"))] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help=help_of("pretrained"))] = False,
    image_size: ImageSize = None,
    limit_images: Annotated[int | None, typer.Option(min=1, help=help_of("limit_images"))] = None,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Find the sub-models that are worth training for your budgets.

    Trains one network with every sub-model that could serve a budget, a few epochs long, and compares them.
    """
    budgets = parse_budgets(max_macs) if max_macs is not None else ()
    shares = parse_widths(widths) if widths.strip() else ()
    if inside is not None:
        refuse(given(context) - WITH_FROM, "--from")
        with stage("loading PyTorch"):
            from cnsn_cli.searching.inside import search_inside

        origin = Origin(data, data_dir, image_column, label_column)
        report(search_inside(inside, shares, budgets, origin, device, skip_bad), json)
        return
    if resume is not None:
        refuse(given(context) - WITH_RESUME, "--resume")
        changes = {name: str(context.params[name]) for name in MOVABLE & given(context)}
        report(_resume(resume, changes, override), json, resume)
        return
    if arch is None or not budgets or override:
        raise typer.BadParameter("give --arch and --max-macs, --from, or --resume")
    options = {
        "data_dir": str(data_dir), "image_column": image_column, "label_column": label_column,
        "image_size": image_size, "limit_images": limit_images, "skip_bad": skip_bad, "device": device,
        "test_data": test_data and str(test_data), "pretrained": pretrained,
        "force": force, "max_latency": limits(max_latency=max_latency).get("latency"),
    }  # fmt: skip
    folder = out or default_folder(f"search-{arch}", data or DATA)
    found = _search(arch, data or DATA, budgets, folder, recipe, seed, epochs, shares, options)
    report(found, json, folder, ["--data", data or DATA, "--recipe", recipe, *_words(context)])


def _words(context: typer.Context) -> list[str]:
    """What `cnsn train` has to be told too, so that it trains what was searched."""
    words = []
    for name in (name for name in PASSED_ON if name in given(context)):
        value = context.params[name]
        for each in value if isinstance(value, list | tuple) else [value]:
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if each is True else [flag, str(each)]
    return words


def _search(
    arch: str,
    data: str,
    budgets: tuple[int, ...],
    folder: Path,
    recipe: str,
    seed: int,
    epochs: int,
    shares: tuple[float, ...],
    options: dict[str, Any],
) -> "Found":
    with stage("loading PyTorch"):
        from cnsn_cli.searching.search import search, shortened
        from cnsn_cli.training.recipe import load_recipe

    chosen = load_recipe(recipe, {"seed": seed})
    short = shortened(chosen, epochs, options["pretrained"])
    with watched(folder, short, "search") as watch:
        found = registry.find_typed(arch)
        return search(found, data, budgets, folder, chosen, epochs, shares, watch=watch, **options)


def _resume(folder: Path, changes: dict[str, Any], override: bool) -> "Found":
    with stage("loading PyTorch"):
        from cnsn_cli.searching.search import resume
        from cnsn_cli.training.resume_state import read_state
        from cnsn_cli.training.run_folder import STATE

    with watched(folder, read_state(folder / STATE).request.recipe, "search") as watch:
        return resume(folder, changes, override, watch)


def report(found: "Found", json: bool, folder: Path | None = None, words: list[str] | None = None) -> None:
    """Print what was found, and the command that trains the best sub-models."""
    command = None
    if found.exits and words:
        command = shlex.join(["cnsn", "train", *words, "--exits", found.exits])
    if json:
        print_json({**asdict(found), "command": command})
        return
    best: dict[str, list[str]] = {pick.best: [] for pick in found.picks}
    for pick in found.picks:
        best[pick.best].append(f"{pick.budget / 1e6:g} M")
    rows = [
        (r.name, f"{r.drops}", f"{r.width:g}", f"{r.macs:,}", f"{r.parameters:,}", f"{r.accuracy:.2%}",
         ", ".join(best.get(r.name, [])))
        for r in sorted(found.results, key=lambda result: -result.macs)
    ]  # fmt: skip
    print_table(COLUMNS, rows, f"accuracy on {found.images:,} {found.selection} images", texts=(0, 6))
    for pick in found.picks:
        print(_sentence(pick))
    if found.exits:
        print(
            f"to train these: {printable(command)}" if command else f"to train these: --exits {found.exits}"
        )
    if folder is not None:
        print(f"written: {printable(str(folder))}/search.png, search.json")


def _sentence(pick: "Pick") -> str:
    text = f"{pick.budget:,} MACs: {pick.best}"
    if pick.runner_up is None or pick.distance is None or pick.error is None:
        return f"{text} is the only candidate"
    points = f"{100 * pick.distance:.2f} points more than {pick.runner_up}"
    return f"{text} has {points} (standard error {100 * pick.error:.2f})"
