"""Records a run: keeps what its epochs leave behind, and writes it together with the state when it is time.

`run` makes a Recorder, asks it for every event of the trainer whether it is time to save, and hands the event
over. This module does not know how a network is trained, nor what ends a run.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from cnsn_cli import distributed
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.files.checkpoint import check_readable
from cnsn_cli.files.metadata import BestEpoch, ModelRecord
from cnsn_cli.files.writer import remove_leftovers, write_text
from cnsn_cli.phases import phase
from cnsn_cli.training.bundle import Bundle, Models, copied
from cnsn_cli.training.data_record import DataRecord
from cnsn_cli.training.description import describe
from cnsn_cli.training.metrics import Epoch, Line, Result, Step, line_of
from cnsn_cli.training.places import working_folder
from cnsn_cli.training.request import Request
from cnsn_cli.training.resume_state import State, environment, state_tensors, write_state
from cnsn_cli.training.run_folder import (
    BEST,
    FILES,
    FOUND,
    FOUND_PICTURE,
    LAST,
    METRICS,
    RECIPE,
    STATE,
    TRACE,
    check_space,
)
from cnsn_cli.training.trainer import Trainer
from cnsn_cli.training.writer_thread import WriterThread

EPOCHS_APART = 60.0  # seconds between a state and the next one at the end of an epoch


class Recorder:
    """Writes the state of a run before its first step, and later together with the models of its epochs.

    `before` is the state that a resumed `trainer` goes on from, `data` the record of its data. `best` is the
    best epoch so far, `id` a name that no other run has.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        request: Request,
        arch: Architecture,
        before: State | None = None,
        data: DataRecord | None = None,
    ) -> None:
        self.folder, self.trainer, self.request = folder, trainer, request
        check_space(folder, file_sizes(trainer))
        precision = trainer.training_step.precision
        metadata = describe(trainer.network, arch, request.data, request.recipe, precision)
        self.metadata = metadata.model_copy(
            update={"started_from": request.started_from, **request.origin.columns()}
        )
        check_readable(folder / BEST, trainer.trained, self.metadata, arch)
        self.metrics = before.metrics if before else ""
        epochs = before.epochs() if before else []
        self.best = max(epochs, key=lambda epoch: epoch.mean_accuracy, default=None)
        self.data = data
        self.id = (before.id if before else None) or uuid4().hex
        self.started_in = (before.started_in if before else None) or working_folder()
        self.interval = request.interval()
        self.steps, self.saved = 0, time.monotonic()
        self.unsaved_last: Models | None = None
        self.unsaved_best: Models | None = None
        self.thread = WriterThread()

    def start(self) -> None:
        """Write what a resumed run needs, in case this run is killed before it saves again."""
        with phase("waiting for the disk"):
            self._begin(state_tensors(self.trainer))
        self.steps, self.saved = 0, time.monotonic()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside this context, a thread writes. At the end, all that was saved is on the disk.

        After the first Ctrl-C a run ends in Stopped, and everything is written before. After a second one the
        thread cannot finish, because its temporary files are gone.
        """
        try:
            with self.thread.running():
                yield
        except KeyboardInterrupt:
            self.thread.forget()
            if distributed.is_first():
                remove_leftovers(self.folder, FILES)
            raise

    def is_due(self, event: Step | Epoch) -> bool:
        """Whether it is time to save, now that `event` has come."""
        seconds = time.monotonic() - self.saved
        epochs = self.trainer.recipe.epochs
        if isinstance(event, Epoch) and (event.epoch == epochs or seconds >= EPOCHS_APART):
            return True
        return self.interval.is_over(self.steps + isinstance(event, Step), seconds)

    def take(self, event: Step | Epoch, save: bool = True) -> None:
        """Record an event; with `save`, write the state and all that it includes and is not yet written.

        All processes call it, with the same `save`. Raises OutputError if writing has failed since the event
        before.
        """
        self.thread.check()
        if isinstance(event, Step):
            self.steps += 1
        with phase("waiting for the disk"):
            if isinstance(event, Epoch):
                self._record(event)
            if save:
                self._save()

    @distributed.first_only
    def finish(self) -> None:
        """Wait until all that was saved is on the disk. Raises OutputError if it cannot be written."""
        with phase("waiting for the disk"):
            self.thread.wait()
        self.thread.check()

    @distributed.first_only
    def _begin(self, tensors: dict[str, Tensor]) -> None:
        write_state(self.folder / STATE, tensors, self._state())
        write_text(self.folder / RECIPE, self.trainer.recipe.to_toml())
        for name in (TRACE, FOUND, FOUND_PICTURE):  # of another run, or of other steps
            (self.folder / name).unlink(missing_ok=True)
        if self.metrics:
            write_text(self.folder / METRICS, self.metrics)

    def _record(self, epoch: Epoch) -> None:
        line = line_of(epoch, self.trainer.recipe.selection)
        is_best = self.best is None or line.mean_accuracy > self.best.mean_accuracy
        self.best = line if is_best else self.best
        self.metrics += line.to_json()
        if distributed.is_first():
            self.unsaved_last = self._models(line)
            self.unsaved_best = self.unsaved_last if is_best else self.unsaved_best

    def _models(self, line: Line) -> Models:
        selection = BestEpoch(images=line.selection, epoch=line.epoch)
        models = with_results(self.metadata.models, line.results)
        metadata = self.metadata.model_copy(update={"models": models, "selection": selection})
        return Models(copied(self.trainer.trained.state_dict()), metadata)

    def _save(self) -> None:
        """All processes give their part of the state. The first one copies it and leaves it to its thread."""
        tensors = state_tensors(self.trainer)
        self.steps, self.saved = 0, time.monotonic()
        if distributed.is_first():
            models = self.unsaved_last, self.unsaved_best
            self.unsaved_last = self.unsaved_best = None
            self.thread.put(Bundle(self.folder, copied(tensors), self._state(), *models))

    def _state(self) -> State:
        trainer = self.trainer
        return State(
            epoch=trainer.epoch,
            step=trainer.step,
            request=self.request,
            environment=environment(trainer.device),
            metrics=self.metrics,
            seconds=trainer.meter.seconds(),
            pulls=trainer.pulls,
            data=self.data,
            started_in=self.started_in,
            drawn=trainer.drawn,
            id=self.id,
        )


def file_sizes(trainer: Trainer) -> dict[str, int]:
    """Bytes of the large files of a run by name. The state also has what the optimizer remembers."""
    weights = sum(tensor.nbytes for tensor in trainer.network.state_dict().values())
    averages = weights if trainer.average else 0
    return {BEST: weights, LAST: weights, STATE: weights + averages + trainer.optimizer.memory_bytes}


def with_results(models: list[ModelRecord], results: Sequence[ModelResult | Result]) -> list[ModelRecord]:
    """The records with the results of the models that were evaluated: in a search, the base-model alone."""
    found = {result.name: {"accuracy": result.accuracy, "loss": result.loss} for result in results}
    return [model.model_copy(update=found.get(model.name, {})) for model in models]
