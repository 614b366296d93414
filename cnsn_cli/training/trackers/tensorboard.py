"""A run in TensorBoard: event files in the folder `tensorboard` of the run folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.run_folder import PLOT, TENSORBOARD
from cnsn_cli.training.trackers.tracking import TrackedRun


@contextmanager
def tensorboard(run: TrackedRun) -> Iterator[Callable[[object], None]]:
    """Log every epoch as a step. TensorBoard keeps numbers in float32.

    TensorBoard forgets what an earlier start of this run logged for the epochs that follow.
    """
    from torch.utils.tensorboard import SummaryWriter

    first = run.epochs_done + 1
    with SummaryWriter(run.folder / TENSORBOARD, purge_step=first) as writer:
        rows = [f"|{name}|{value}|" for name, value in run.settings.items()]
        writer.add_text("settings", "\n".join(["|setting|value|", "|---|---|", *rows]), first)

        def log(event: object) -> None:
            if isinstance(event, Epoch):
                for name, value in event.numbers().items():
                    writer.add_scalar(name, value, event.epoch)
                writer.flush()

        yield log
        import numpy
        from PIL import Image

        with Image.open(run.folder / PLOT) as picture:
            pixels = numpy.asarray(picture.convert("RGB"))
        writer.add_image("plot", pixels, run.settings["epochs"], dataformats="HWC")
