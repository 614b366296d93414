"""`cnsn bench`: how fast models are."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnsn_cli.commands.options import Json, Plugin, model_file, parse_counts
from cnsn_cli.commands.output import COLUMNS, print_json, print_table
from cnsn_cli.commands.signals import ended_by_signals
from cnsn_cli.exits import Exit
from cnsn_cli.stages import stage

if TYPE_CHECKING:
    from cnsn_cli.evaluation.latency import Speed

HEADINGS = ("model", "runtime", "batch", "threads", "p50 ms", "p95 ms", "images/s", "MACs", "accuracy")


def bench(
    files: Annotated[list[Path], model_file("Networks, detached models, exported .onnx files.")],
    batch_sizes: Annotated[str, typer.Option(help="Numbers of images in a batch, such as 1,32.")] = "1",
    threads: Annotated[str, typer.Option(help="Numbers of threads, such as 1,2.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="How often each model is timed, in turns.")] = 50,
    device: Annotated[str, typer.Option(help="The device to run on: auto, cpu, cuda or mps.")] = "cpu",
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Measure latency and throughput of every model in the files."""
    batches, counts = parse_counts(batch_sizes), parse_counts(threads)
    with stage("loading PyTorch"):
        from cnsn_cli.device import choose_device
        from cnsn_cli.evaluation.latency import bench as measure

    device = choose_device(device).type  # results name a device, not `auto`
    with ended_by_signals(*files):
        speeds = measure(files, batches, counts, rounds, device)
    if json:
        print_json({"rounds": rounds, "device": device, "speeds": [_facts(speed) for speed in speeds]})
        return
    rows = [_row(speed, len(files) > 1) for speed in speeds]
    print_table(HEADINGS, rows, f"timed in turns on {device}, rounds: {rounds}", texts=(0, 1))


def _facts(speed: "Speed") -> dict[str, object]:
    return {**asdict(speed), "file": str(speed.file), "images_per_second": speed.images_per_second}


def _row(speed: "Speed", several: bool) -> tuple[str, ...]:
    exit = Exit(speed.drops, speed.width)
    name = speed.name if exit.kind == "base" else f"{speed.name} ({exit})"
    return (
        f"{name} {speed.file.name}" if several else name,
        speed.runtime,
        f"{speed.batch}",
        f"{speed.threads}",
        f"{speed.p50 * 1e3:.2f}",
        f"{speed.p95 * 1e3:.2f}",
        f"{speed.images_per_second:,.0f}",
        COLUMNS["macs"][1](speed.macs),
        "" if speed.accuracy is None else COLUMNS["accuracy"][1](speed.accuracy),
    )
