"""A run in Trackio: on this machine, or where Trackio's own variables say; the project is `cnsn`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.run_folder import PLOT
from cnsn_cli.training.trackers.tracking import TrackedRun

PROJECT = "cnsn"  # Trackio has no default


@contextmanager
def trackio(run: TrackedRun) -> Iterator[Callable[[object], None]]:
    """Log every epoch as a step. A resumed run goes on in its run of Trackio.

    Trackio knows runs by their names alone, so the name ends in a part of the run's id. It cannot take a
    number back: an epoch that was logged before is not logged again.
    """
    import trackio

    name = f"{run.folder.name}-{run.id[:8]}"
    record = trackio.init(project=PROJECT, name=name, config=dict(run.settings), resume="allow", embed=False)
    first = getattr(record, "_next_step", 0)  # Trackio does not tell this step in public
    try:

        def log(event: object) -> None:
            if isinstance(event, Epoch) and event.epoch >= first:
                record.log(event.numbers(), step=event.epoch)

        yield log
        record.log({"plot": trackio.Image(str(run.folder / PLOT))}, step=run.settings["epochs"])
    finally:
        trackio.finish()  # after `record.finish()` Trackio would end the run once more when the process ends
