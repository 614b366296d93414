"""`cnsn recipes`: the recipes that come with cnsn, and their values."""

from typing import Annotated

import typer

from cnsn_cli.commands.options import Json
from cnsn_cli.commands.output import print_json, print_table, printable


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe or a TOML file, to see all its values.")
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes, or with NAME print one as a TOML file, which --recipe takes after changes."""
    from cnsn_cli.training.recipe import load_recipe
    from cnsn_cli.training.recipe_files import description, presets, read_settings

    names = presets() if name is None else [name]
    loaded = {one: load_recipe(one) for one in names}
    if json:
        print_json({"recipes": {one: recipe.model_dump(mode="json") for one, recipe in loaded.items()}})
    elif name is None:
        rows = [
            (one, f"{r.epochs}", f"{r.batch_size}", f"{r.lr:g}", r.schedule, description(one))
            for one, r in loaded.items()
        ]
        print_table(("recipe", "epochs", "batch", "lr", "schedule", "what it is"), rows, texts=(0, 5))
    else:
        if about := description(name):
            print(printable(f"# {about}"))
        print(loaded[name].to_toml(), end="")
        if baseline := read_settings(name).get("baseline_weight_decay"):
            print(f"# without exits: weight_decay = {baseline}")
