"""What `cnsn train --dry-run` prints: what a run would take.

This module does not know how that was found out.
"""

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from cnsn_cli.commands.output import print_json, print_table

if TYPE_CHECKING:
    from cnsn_cli.training.dry_run import Forecast

MIB = 2**20


def print_forecast(forecast: "Forecast", json: bool) -> None:
    if json:
        print_json(asdict(forecast))
        return
    rows = [
        ("images to train on", f"{forecast.train_images:,}"),
        (f"{forecast.selection} images", f"{forecast.held_out_images:,}"),
        ("steps", f"{forecast.steps:,} ({forecast.epochs:,} x {forecast.steps_per_epoch:,})"),
        (f"peak of memory ({_memory(forecast.device)})", f"{forecast.peak_memory / MIB:,.0f} MiB"),
        ("time of an epoch", f"about {_duration(forecast.epoch_seconds)}"),
        ("time of all epochs", f"about {_duration(forecast.seconds)}"),
        ("files at the end", f"about {forecast.bytes / MIB:,.1f} MiB"),
        ("disk space at most", f"about {forecast.most_bytes / MIB:,.1f} MiB"),
    ]
    print_table(("the run", "would take"), rows, "dry run: the run would start, and nothing was written")


def _memory(device: str) -> str:
    return "of the GPU" if device.startswith("cuda") else "of this process"


def _duration(seconds: float) -> str:
    """`0.42 s`, `17 s`, or `1:02:03` in hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    return str(timedelta(seconds=round(seconds)))
