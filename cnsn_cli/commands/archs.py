"""`cnsn archs`: the architectures that can be trained, and their detach points."""

from typing import TYPE_CHECKING, Annotated

import typer

from cnsn_cli.backbones.registry import architectures, find_typed
from cnsn_cli.commands.options import ImageSize, Json, Plugin
from cnsn_cli.commands.output import COLUMNS, print_json, print_table

if TYPE_CHECKING:
    from cnsn_cli.backbones.architecture import Architecture
    from cnsn_cli.backbones.detach_points import Border


def archs(
    name: Annotated[
        str | None,
        typer.Argument(
            help="An architecture, to see its detach points, and the MACs of the sub-models there."
        ),
    ] = None,
    image_size: ImageSize = 32,
    why: Annotated[
        bool, typer.Option("--why", help="Show every border in NAME, and why it is not a detach point.")
    ] = False,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """List the installed architectures, or with NAME its options, its detach points and the MACs there."""
    if why and name is None:
        raise typer.BadParameter("--why goes with NAME")
    if name is None:
        _list_all(json)
    else:
        _show(find_typed(name), image_size or 32, why, json)


def _list_all(json: bool) -> None:
    rows = [(name, arch.provider) for name, arch in architectures().items()]
    if json:
        print_json({"architectures": [{"name": name, "provider": provider} for name, provider in rows]})
    else:
        print_table(("architecture", "provided by"), rows, texts=(0, 1))


def _show(arch: "Architecture", image_size: int, why: bool, json: bool) -> None:
    from cnsn_cli.backbones.detach_points import borders, detach_points
    from cnsn_cli.evaluation.costs import cut_everywhere, torch_macs
    from cnsn_cli.task import Task

    options = arch.defaults()
    task = Task.plain(image_size=image_size)
    backbone = arch.build_blank(task)
    points = detach_points(backbone, task.image_shape)
    places = borders(backbone, task.image_shape) if why else []
    macs = torch_macs(cut_everywhere(backbone, task))
    if json:
        rows = [{**p._asdict(), "macs": macs[f"drop{p.drops}"]} for p in points]
        names = {"name": arch.name, "provider": arch.provider, "macs": macs["base"]}
        content = {**names, "options": options, "detach_points": rows}
        print_json(content | ({"borders": [place._asdict() for place in places]} if why else {}))
        return
    shown_macs = COLUMNS["macs"][1]
    print(f"{arch.text}, provided by {arch.provider}")
    shown = ", ".join(f"{key}={default}" for key, default in options.items())
    print("options:", shown or ("those of its builder" if arch.takes_any else "none"))
    print_table(
        ("drops", "first unit kept", "feature map there", "MACs"),
        [
            (str(p.drops), str(p.unit), " x ".join(map(str, p.shape)), shown_macs(macs[f"drop{p.drops}"]))
            for p in points
        ],
        f"detach points at {image_size} x {image_size}; the base-model has {shown_macs(macs['base'])} MACs",
    )
    if why:
        print_table(
            ("after", "drops", "detach point?"),
            [(p.after, "" if p.drops is None else str(p.drops), _answer(p)) for p in places],
            "every border",
            texts=(0, 2),
        )


def _answer(border: "Border") -> str:
    return "yes" if border.reason is None else f"no: {border.reason}"
