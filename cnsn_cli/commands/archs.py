"""`cnsn archs`: what can be trained."""

from typing import Annotated

import typer

from cnsn_cli.commands.options import ImageSize, Json, Plugin
from cnsn_cli.commands.output import print_json, print_table


def archs(
    name: Annotated[str | None, typer.Argument(help="One architecture, to see its detach points.")] = None,
    image_size: ImageSize = 32,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """List the installed architectures, or with NAME its options and detach points."""
    if name is None:
        _list_all(json)
    else:
        _show(name, image_size or 32, json)


def _list_all(json: bool) -> None:
    from cnsn_cli import registry

    known = registry.architectures()
    rows = [(name, registry.provider(entry)) for name, entry in known.items()]
    if json:
        print_json({"architectures": [{"name": name, "provider": provider} for name, provider in rows]})
    else:
        print_table(("architecture", "provided by"), rows)


def _show(arch: str, image_size: int, json: bool) -> None:
    from cnsn_cli import registry
    from cnsn_cli.backbone import detach_points
    from cnsn_cli.task import Task

    entry = registry.find(arch)
    options = registry.options(entry)
    task = Task.plain(image_size=image_size)
    points = detach_points(registry.build_blank(arch, task), task.image_shape)
    if json:
        rows = [{"drops": p.drops, "unit": p.unit, "shape": p.shape} for p in points]
        names = {"name": entry.name, "provider": registry.provider(entry)}
        print_json({**names, "options": options, "detach_points": rows})
        return
    print(f"{entry.name}, provided by {registry.provider(entry)}")
    print("options:", ", ".join(f"{key}={default}" for key, default in options.items()) or "none")
    print_table(
        ("drops", "first unit kept", "feature map there"),
        [(str(p.drops), str(p.unit), " x ".join(map(str, p.shape))) for p in points],
        f"detach points at {image_size} x {image_size}",
    )
