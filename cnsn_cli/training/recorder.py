"""Writes the files of a run: models, metrics, recipe and state.

`run` makes a Recorder, hands it every event of the trainer, and asks it when to save the state. This module
does not know how a network is trained, nor what ends a run.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from cnsn_cli import distributed
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.files.checkpoint import check_readable, save
from cnsn_cli.files.metadata import BestEpoch, ModelRecord
from cnsn_cli.files.writer import write_text
from cnsn_cli.training.data_record import DataRecord
from cnsn_cli.training.metrics import Epoch, Line, Result, Step, line_of
from cnsn_cli.training.places import working_folder
from cnsn_cli.training.request import Request
from cnsn_cli.training.resume_state import State, environment, save_state
from cnsn_cli.training.run_folder import BEST, LAST, METRICS, RECIPE, STATE, check_space
from cnsn_cli.training.setup import describe
from cnsn_cli.training.trainer import Trainer


class Recorder:
    """Writes the state of a run before its first step and in intervals, and models after each epoch.

    `before` is the state that a resumed `trainer` goes on from, `data` the record of its data. `best` is the
    best epoch so far.
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
        metadata = describe(trainer.network, arch, request.data, request.recipe, request.precision)
        self.metadata = metadata.model_copy(update={"started_from": request.started_from})
        check_readable(folder / BEST, trainer.trained, self.metadata, arch)
        self.metrics = before.metrics if before else ""
        epochs = before.epochs() if before else []
        self.best = max(epochs, key=lambda epoch: epoch.mean_accuracy, default=None)
        self.data = data
        self.started_in = (before.started_in if before else None) or working_folder()
        self.interval = request.interval()
        self.steps, self.saved = 0, time.monotonic()

    def start(self) -> None:
        """Write what a resumed run needs, in case this run is killed before its first epoch is over."""
        self.save_state()
        self._write(RECIPE, self.trainer.recipe.to_toml())
        if self.metrics:
            self._write(METRICS, self.metrics)

    def take(self, event: Step | Epoch) -> None:
        """After an epoch write the models, the metrics, then the state: a finished state implies that the
        rest is on disk."""
        if isinstance(event, Epoch):
            self._record(event)
            self.save_state()
            return
        self.steps += 1

    def is_due(self) -> bool:
        """Whether it is time to save the state."""
        return self.interval.is_over(self.steps, time.monotonic() - self.saved)

    def save_state(self) -> None:
        trainer = self.trainer
        state = State(
            epoch=trainer.epoch,
            step=trainer.step,
            request=self.request,
            environment=environment(trainer.device),
            metrics=self.metrics,
            seconds=trainer.meter.seconds(),
            pulls=trainer.pulls,
            data=self.data,
            started_in=self.started_in,
        )
        save_state(self.folder / STATE, trainer, state)
        self.steps, self.saved = 0, time.monotonic()

    def _record(self, epoch: Epoch) -> None:
        line = line_of(epoch, self.trainer.recipe.selection)
        self._save(LAST, line)
        if self.best is None or line.mean_accuracy > self.best.mean_accuracy:
            self.best = line
            self._save(BEST, line)
        self.metrics += line.to_json()
        self._write(METRICS, self.metrics)

    @distributed.first_only
    def _write(self, name: str, text: str) -> None:
        write_text(self.folder / name, text)

    @distributed.first_only
    def _save(self, name: str, line: Line) -> None:
        selection = BestEpoch(images=line.selection, epoch=line.epoch)
        models = with_results(self.metadata.models, line.results)
        metadata = self.metadata.model_copy(update={"models": models, "selection": selection})
        save(self.folder / name, self.trainer.trained, metadata)


def file_sizes(trainer: Trainer) -> dict[str, int]:
    """Bytes of the large files of a run by name. The state also has momenta, and maybe an average."""
    weights = sum(tensor.nbytes for tensor in trainer.network.state_dict().values())
    held = 3 if trainer.average else 2
    return {BEST: weights, LAST: weights, STATE: held * weights}


def with_results(models: list[ModelRecord], results: Sequence[ModelResult | Result]) -> list[ModelRecord]:
    return [
        model.model_copy(update={"accuracy": result.accuracy, "loss": result.loss})
        for model, result in zip(models, results, strict=True)
    ]
