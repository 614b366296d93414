"""A run in Weights & Biases: where it is recorded, and in which project, is what wandb's variables say."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.run_folder import PLOT
from cnsn_cli.training.trackers.tracking import TrackedRun


@contextmanager
def wandb(run: TrackedRun) -> Iterator[Callable[[object], None]]:
    """Log every epoch as a step. A resumed run goes on in its run of wandb.

    wandb cannot take a number back: an epoch that was logged before is not logged again.
    """
    import wandb

    with wandb.init(
        id=os.environ.get("WANDB_RUN_ID", run.id),
        name=os.environ.get("WANDB_NAME", run.folder.name),
        config=dict(run.settings),
        resume="allow",
    ) as record:

        def log(event: object) -> None:
            if isinstance(event, Epoch) and event.epoch >= record.step:
                record.log(event.numbers(), step=event.epoch)

        yield log
        record.log({"plot": wandb.Image(str(run.folder / PLOT))})
