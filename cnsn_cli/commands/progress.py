"""What people see on stderr while a network trains: live bars on a terminal, else a line for each epoch.

`cnsn train` passes the events of a run to `progress`. This module does not know how a network is trained.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cnsn_cli.commands.output import print_notes, print_skipped, printable, shortened
from cnsn_cli.commands.waiting import Clock, finished
from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.stages import Stage, told
from cnsn_cli.training.metrics import Epoch, Step
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.run import Event, Watch
from cnsn_cli.training.started import Started
from cnsn_cli.training.trackers.tracking import TrackerFailed

LOOK_EVERY = 0.5  # seconds between two looks at the results; each look waits for the device
OTHER_COLUMNS = 30  # the width of the words and numbers beside the bar


@contextmanager
def progress(recipe: Recipe) -> Iterator[Watch]:
    """Yields a function to call with every event of a training run. On a terminal it shows the stages too."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda event: _print_event(console, event, recipe)
        return
    watcher = _Watcher(console, recipe)
    with watcher.live, told(watcher.show_stage):
        yield watcher


class _Watcher:
    """A bar over all steps of all epochs, so that it shows the time left of the whole run.

    The steps, the speed and the models are texts below the bar, because a bar would cut them. The bar appears
    with the first step; a stage that is running is below it, or alone.
    """

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self.recipe = recipe
        self.bars = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=min(24, max(4, console.width - OTHER_COLUMNS))),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.models, self.clock = Text(), Clock()
        self.live = Live(self.clock, console=console, transient=True)
        self.task = self.bars.add_task("", total=None, epoch=f"1/{recipe.epochs}")
        self.steps, self.shown = 0, 0.0

    def show_stage(self, stage: Stage) -> None:
        if stage.seconds is None:
            self.clock.begin(stage)
            self.live.refresh()  # the work may keep the thread that refreshes waiting
        else:
            self.clock.end()
            self.live.console.print(finished(stage))

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.steps = event.steps_per_epoch
            total = self.steps * self.recipe.epochs
            self.bars.update(self.task, total=total, completed=event.steps_done)
            self.live.update(Group(self.bars, self.models, self.clock))
        elif isinstance(event, Epoch):
            self._show(event.epoch, self.steps, event.train, event.images_per_second)
        elif isinstance(event, Step) and time.monotonic() - self.shown > LOOK_EVERY:
            self._show(event.epoch, event.step, event.meter.results(), event.meter.images_per_second())
        _print_event(self.bars.console, event, self.recipe)

    def _show(self, epoch: int, step: int, results: list[ModelResult], speed: float) -> None:
        done = (epoch - 1) * self.steps + step
        total = self.steps * self.recipe.epochs
        self.models.plain = f"step {done:,}/{total:,}  {speed:,.0f} images/s\n{_models(results)}"
        self.bars.update(self.task, completed=done, epoch=f"{epoch}/{self.recipe.epochs}")
        self.shown = time.monotonic()


def _print_event(console: Console, event: Event, recipe: Recipe) -> None:
    if isinstance(event, Started):
        print_notes(event.notes)
        print_skipped(event.skipped)
        console.print(_opening(event, recipe), soft_wrap=not console.is_terminal)
    elif isinstance(event, Epoch):
        console.print(
            f"epoch {event.epoch}/{recipe.epochs}  {_models(event.results)}  "
            f"{event.images_per_second:,.0f} images/s  {event.seconds:.0f} s  lr {event.lr:.2g}",
            soft_wrap=not console.is_terminal,
        )
    elif isinstance(event, TrackerFailed):
        reason = shortened(printable(event.reason))
        console.print(
            f"warning: tracker {event.name} has failed and records no more: {reason}",
            soft_wrap=not console.is_terminal,
        )


def _batches(recipe: Recipe) -> str:
    text = f"batches of {recipe.batch_size}"
    return text if recipe.accumulate == 1 else f"steps of {recipe.accumulate} {text}"


def _opening(event: Started, recipe: Recipe) -> str:
    lines = [
        f"training on {event.train_images:,} images{_limit(event)} on {_ways(event)}: "
        f"{_batches(recipe)}, {recipe.optimizer}, lr {recipe.lr:g}, "
        f"weight decay {recipe.weight_decay:g}, seed {recipe.seed}",
        f"the best epoch is chosen on {event.held_out_images:,} {event.selection} images",
    ]
    if 0 < event.steps_done < event.steps_per_epoch * recipe.epochs:
        lines.insert(0, _where(event, recipe))
    if event.selection == "test":
        lines[-1] += ", as the paper did: its accuracy is no estimate for new images (see --val-split)"
    lines += event.remarks
    if event.drawn:
        lines.append(
            f"the classifier starts at random, the weights are for other classes: {', '.join(event.drawn)}"
        )
    if late := recipe.unreached_milestones():
        listed = ", ".join(map(str, late))
        lines.append(f"warning: training ends with epoch {recipe.epochs}, before the milestones {listed}")
    if recipe.warmup_epochs > recipe.epochs:
        lines.append(
            f"warning: training ends with epoch {recipe.epochs}, within the warm-up of "
            f"{recipe.warmup_epochs:g} epochs: the learning rate never reaches {recipe.lr:g}"
        )
    return "\n".join(lines)


def _limit(event: Started) -> str:
    return f" (--limit-images {event.limit_images})" if event.limit_images else ""


def _ways(event: Started) -> str:
    """The device and how steps run on it: `cuda in bf16, captured and compiled`."""
    ways = [word for word in ("captured", "compiled") if getattr(event, word)]
    return f"{event.device} in {event.precision}{', ' * bool(ways)}{' and '.join(ways)}"


def _where(event: Started, recipe: Recipe) -> str:
    """Where a resumed run goes on."""
    epochs, step = divmod(event.steps_done, event.steps_per_epoch)
    where = f"going on with epoch {epochs + 1:,} of {recipe.epochs:,}"
    return f"{where}, after step {step:,} of {event.steps_per_epoch:,}" if step else where


def _models(results: Sequence[ModelResult]) -> str:
    return "  ".join(f"{r.name} {r.accuracy:.2%} (loss {r.loss:.3f})" for r in results)
