"""A training run in a folder: from the names of an architecture and a data set to files on the disk.

Python users and `cnsn train` call `train` and `resume`. This module puts the parts of the package together;
it does not know how a step is computed, nor how a file is written.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnsn_cli import distributed
from cnsn_cli.backbones import registry
from cnsn_cli.choices import Selection
from cnsn_cli.data.datasets import Dataset
from cnsn_cli.data.origin import check_recorded
from cnsn_cli.device import choose_device
from cnsn_cli.errors import CheckpointError, DataError, TrainingError
from cnsn_cli.evaluation.accuracy import ModelResult, evaluate
from cnsn_cli.files.checkpoint import fill
from cnsn_cli.files.metadata import ModelRecord, metadata_in
from cnsn_cli.phases import collected, phase, totals
from cnsn_cli.stages import counted, stage
from cnsn_cli.training.arguments import Arguments, called_like, ignore
from cnsn_cli.training.building import trained_architecture
from cnsn_cli.training.data_record import check_data
from cnsn_cli.training.hint import learnt_nothing
from cnsn_cli.training.metrics import Epoch, Step
from cnsn_cli.training.places import located
from cnsn_cli.training.plot import plot
from cnsn_cli.training.profiling import traced
from cnsn_cli.training.recorder import Recorder, with_results
from cnsn_cli.training.request import Request, decide
from cnsn_cli.training.resume_state import OpenState, State, differences, environment, open_state, restore
from cnsn_cli.training.run_folder import (
    BEST,
    LAST,
    PLOT,
    STATE,
    TRACE,
    discard_events,
    locked,
    refuse_existing,
)
from cnsn_cli.training.setup import Prepared, prepare
from cnsn_cli.training.signals import Stopped, listening
from cnsn_cli.training.started import Started, started
from cnsn_cli.training.trackers import installed
from cnsn_cli.training.trackers.tracking import TrackedRun, TrackerFailed, tracked

# What a resumed run cannot change: the tensors of the network, and the meaning of a saved step.
FIXED = (
    "arch", "exits", "drop", "freeze_base", "init", "pretrained", "image_size", "in_channels", "skip_bad",
    "bn", "step_down", "ema", "batch_size", "accumulate", "optimizer", "val_split", "limit_images",
    "crop_pct",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its best epoch, and every model with its results on the test images.

    `selection` says which images chose the best epoch. `hint` says what to try if models learnt nothing.
    `phases` are the seconds that each phase of the work took since `train` or `resume` was called.
    """

    folder: Path
    best_epoch: int
    selection: Selection
    models: list[ModelRecord]
    hint: str | None = None
    phases: Mapping[str, float] = field(default_factory=dict, compare=False)


Event = Started | Step | Epoch | TrackerFailed
Watch = Callable[[Event], None]


@called_like(Arguments)
def train(asked: Arguments) -> Run:
    """Train a network with its sub-models, and write a run folder. Returns the finished Run.

    The state is also saved at the end of an epoch if the state before is a minute old, and at the end of the
    run; `resume` goes on from it. The models and metrics of an epoch appear together with a state. Raises a
    CnsnError (see cnsn_cli.errors) if something is wrong, and Stopped after Ctrl-C or SIGTERM. Every file
    that was written is then complete and stays.

    Arguments:
    """
    request = decide(asked)
    with distributed.joined(), collected(), begun(request, asked, locked) as (recorder, prepared):
        discard_events(recorder.folder)
        return _run(recorder, prepared, asked.watch, asked.profile)


@contextmanager
def begun(
    request: Request, asked: Arguments, entered: Callable[[Path], AbstractContextManager[None]]
) -> Iterator[tuple[Recorder, Prepared]]:
    """Do all that comes before the first step of a new run; inside the context its folder is `entered`.

    Raises a CnsnError if the run cannot start. `train` and `dry_run` both begin here.
    """
    folder = Path(asked.out)
    refuse_existing(folder, asked.force)
    request.interval()
    installed.find(request.track)
    arch = registry.find(asked.arch)
    prepared = prepare(request, arch)
    found = prepared.dataset.task.num_classes
    if asked.classes not in (None, found):
        raise DataError(f"{request.data} has {found} classes, not {asked.classes}: leave out --classes")
    with entered(folder):
        refuse_existing(folder, asked.force)  # again: before the lock another run could still write here
        request = _decided(request, prepared)
        trained = trained_architecture(arch, request.drop)
        yield Recorder(folder, prepared.trainer, request, trained, data=prepared.record), prepared


def resume(
    folder: str | Path,
    changes: Mapping[str, Any] | None = None,
    override: bool = False,
    watch: Watch = ignore,
) -> Run:
    """Go on with a run from its saved state. Returns the finished Run.

    The run ends in the weights of a run that was never stopped. They are the same bit for bit on the same
    device, with the same data, versions and number of threads. Relative names are looked for in the folder
    where the run was started, then in the working folder. Raises TrainingError with a list of differences if
    something differs, CheckpointError if the folder holds no run, and whatever `train` raises.

    Arguments:
        folder: The run folder.
        changes: New values for arguments of `train` and settings of its recipe, by name. Default: none.
        override: Go on even if something differs. Default: False.
        watch: A function that is called with every event: Started, Step, Epoch, TrackerFailed.
    """
    folder = Path(folder)
    if not (folder / STATE).exists():  # locking would make a folder
        raise CheckpointError(f"cannot read {folder / STATE}: No such file or directory")
    with distributed.joined(), collected(), locked(folder), open_state(folder / STATE) as saved:
        check_kind(folder, saved.state.request)
        request = asked_again(folder, saved.state, changes or {}, override)
        if saved.state.epoch >= request.recipe.epochs and request.recipe.selection == "test":
            return _finished(folder, saved.state)
        installed.find(request.track)
        recorder, prepared = going_on(folder, saved, request, changes or {}, override)
        return _run(recorder, prepared, watch)


def _decided(request: Request, prepared: Prepared) -> Request:
    step = prepared.trainer.training_step
    return request.decided(step.precision, step.is_compiled)


def check_kind(folder: Path, request: Request, search: bool = False) -> None:
    """Raises CheckpointError if the saved run is a search and should be a training run, or the reverse."""
    if bool(request.budgets) != search:
        kind, command = ("search", "search") if request.budgets else ("training run", "train")
        raise CheckpointError(f"{folder} holds a {kind}: go on with cnsn {command} --resume {folder}")


def asked_again(folder: Path, state: State, changes: Mapping[str, Any], override: bool) -> Request:
    """The request of a saved run, with `changes`. Raises TrainingError if it would not be the same run."""
    request = state.request.with_changes(changes)
    device = choose_device(request.device)
    request = request.with_changes({"device": device.type})  # `changes` may say `auto`
    here = {name: value for name, value in environment(device).items() if name in state.environment}
    _check_differences(folder, state.request, request, differences(state.environment, here), override)
    return request


def going_on(
    folder: Path, saved: OpenState, request: Request, changes: Mapping[str, Any], override: bool
) -> tuple[Recorder, Prepared]:
    """Do all that comes before the next step of a saved run, for its request after `changes`."""
    state = saved.state
    arch = registry.find(request.arch, _provider(folder))
    found = located(request, state.started_in, changes)
    if "data" not in changes:
        check_recorded(found.origin)
    prepared = prepare(
        found, arch, lambda record: check_data(folder, state.data, record, override), state.drawn
    )
    with stage("restoring the state"):
        restore(saved, prepared.trainer)
    request = _decided(request, prepared)
    trained = trained_architecture(arch, request.drop)
    return Recorder(folder, prepared.trainer, request, trained, state, prepared.record), prepared


def _finished(folder: Path, state: State) -> Run:
    """A run with nothing left to train: a finished state implies that the files of its models are on disk.

    With a `val_split` the test images are not in any file, so such a run is concluded again.
    """
    best = max(state.epochs(), key=lambda epoch: epoch.mean_accuracy)
    models = metadata_in(folder / BEST).models
    if not (folder / PLOT).exists():  # it is drawn after the last state
        _draw(folder)
    return Run(folder, best.epoch, "test", models, phases=totals())


@distributed.first_only
def _draw(folder: Path) -> None:
    plot(folder, folder / PLOT, force=True)


def _provider(folder: Path) -> str | None:
    """The distribution of the architecture, as the models in a run folder name it; None before the first."""
    last = folder / LAST
    return metadata_in(last).provider if last.exists() else None


def _check_differences(folder: Path, old: Request, new: Request, elsewhere: str, override: bool) -> None:
    before, after = ({**request.flat(), "save_every": None, "track": None} for request in (old, new))
    if fixed := differences(*({key: flat[key] for key in FIXED} for flat in (before, after))):
        raise TrainingError(f"{folder} cannot go on with {fixed}: start another run with --out")
    changed = ", ".join(filter(None, (differences(before, after), elsewhere)))
    if changed and not override:
        raise TrainingError(f"{folder} was trained differently ({changed}): give --override to go on anyway")


def _run(recorder: Recorder, prepared: Prepared, watch: Watch, profile: bool = False) -> Run:
    trainer, request = prepared.trainer, recorder.request
    run = TrackedRun(recorder.folder, recorder.id, request.flat(), trainer.epoch)
    with tracked(run, installed.find(request.track), watch) as tell:
        tell(started(prepared, request))
        if trainer.epoch < trainer.recipe.epochs:
            with _traced(recorder, profile) as trace:
                run_steps(recorder, tell, trace)
        distributed.leave()
        return _finish(recorder, prepared.dataset)


def _traced(recorder: Recorder, profile: bool) -> AbstractContextManager[Callable[[], None]]:
    trainer = recorder.trainer
    if not profile or not distributed.is_first():
        return nullcontext(lambda: None)
    return traced(recorder.folder / TRACE, trainer.steps_per_epoch * trainer.recipe.epochs)


def run_steps(recorder: Recorder, watch: Watch, trace: Callable[[], None] = lambda: None) -> None:
    """Train what is left, and record it. Raises Stopped after a signal, when all is written."""
    with listening() as signalled, recorder.writing():
        recorder.start()
        for event in recorder.trainer.run():
            number, due = distributed.largest(signalled() or 0, recorder.is_due(event))
            recorder.take(event, save=bool(number or due))
            if isinstance(event, Step):
                trace()
            watch(event)
            if number:
                recorder.finish()
                raise Stopped(number)
        recorder.finish()


def _finish(recorder: Recorder, dataset: Dataset) -> Run:
    best, selection = recorder.best, recorder.trainer.recipe.selection
    assert best is not None  # a recipe has at least one epoch
    results = _conclude(recorder, dataset) or best.results
    models = with_results(recorder.metadata.models, results)
    hint = learnt_nothing(results, dataset, recorder.trainer.recipe)
    return Run(recorder.folder, best.epoch, selection, models, hint, totals())


@distributed.first_only
def _conclude(recorder: Recorder, dataset: Dataset) -> list[ModelResult] | None:
    """Draw the run. With a `val_split`, return the results of the best network on the test images.

    These images are used here for the first time.
    """
    results = None
    if recorder.trainer.recipe.selection == "validation":
        network = recorder.trainer.trained
        what = f"evaluating the best epoch on {counted(len(dataset.test), 'test image')}"
        with stage(what), phase("evaluating"):
            fill(network, recorder.folder / BEST)
            results = evaluate(network, dataset.test)
    with stage(f"drawing {PLOT}"):
        plot(recorder.folder, recorder.folder / PLOT, force=True)
    return results
