"""A search: one short run that trains all candidates of some budgets, and what it found.

Python users and `cnsn search` call `search` and `resume`. The run is one of `training`, whose request has
budgets. This module does not know how candidates are found and compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cnsn_cli import distributed
from cnsn_cli.backbones import registry
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.data.datasets import first_look
from cnsn_cli.data.origin import Origin
from cnsn_cli.errors import ArgumentError, CheckpointError, ProcessError
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.files.writer import write_text
from cnsn_cli.phases import collected
from cnsn_cli.searching.grid import find_candidates
from cnsn_cli.searching.picture import draw
from cnsn_cli.searching.ranking import Found, rank
from cnsn_cli.stages import stage
from cnsn_cli.training.arguments import Arguments, ignore
from cnsn_cli.training.recipe import Recipe, load_recipe
from cnsn_cli.training.recorder import Recorder
from cnsn_cli.training.request import decide
from cnsn_cli.training.resume_state import open_state
from cnsn_cli.training.run import Watch, asked_again, begun, check_kind, going_on, run_steps
from cnsn_cli.training.run_folder import FOUND, FOUND_PICTURE, PLOT, STATE, discard_events, locked
from cnsn_cli.training.setup import Prepared
from cnsn_cli.training.started import started

WIDTHS = (0.25, 0.5, 0.75)
EPOCHS = 3
COLUMNS = ("data_dir", "image_column", "label_column", "test_data")  # of an Origin
NO_OPTIONS = ("compiled", "capture", "track", "profile", "drop", "freeze_base")
HELD_OUT = 0.1  # of the training images, if the recipe holds out none


def search(
    arch: str | Architecture,
    data: str,
    max_macs: Sequence[int],
    out: str | Path,
    recipe: Recipe | None = None,
    epochs: int = EPOCHS,
    widths: Sequence[float] = WIDTHS,
    max_latency: float | None = None,
    watch: Watch = ignore,
    **options: Any,
) -> Found:
    """Find the best sub-models for budgets of MACs; write a run folder with search.json and search.png.

    Arguments:
        arch: an architecture, such as `vgg16`.
        data: a data set, as `train` takes it.
        max_macs: the budgets, in MACs for one image.
        out: the folder, which is one of a run.
        recipe: as it is meant for training; None: `best`. A search shortens it.
        epochs: how long the search trains.
        widths: shares of the channels to try beside all of them.
        max_latency: candidates are at most so slow: seconds for one image, in one thread of this machine.
        watch: called with every event, as `train` does.
        options: other arguments of `train`, such as `device`; none of those in NO_OPTIONS.

    A step trains the base-model and three candidates that are drawn. Afterwards the BN statistics of each
    candidate are measured again, and held-out training images compare the candidates. Raises BudgetError if a
    budget has no candidate, and what `train` raises.
    """
    _check_call(max_macs, options)
    pretrained = bool(options.get("pretrained") or options.get("init"))
    architecture, short = registry.find(arch), shortened(recipe or load_recipe("best"), epochs, pretrained)
    with stage("looking for candidates"):
        columns = {key: options[key] for key in COLUMNS if key in options}
        size, channels = options.get("image_size"), options.get("in_channels", 3)
        task = first_look(Origin(data, **columns), size, channels, options.get("skip_bad", False))
    grid = find_candidates(architecture, task, max_macs, widths, short.step_down, max_latency)
    asked = Arguments(
        architecture, grid.words, data, short, out, compiled="off", capture=False, watch=watch, **options
    )
    with collected(), begun(decide(asked, max_macs), asked, locked) as (recorder, prepared):
        (recorder.folder / PLOT).unlink(missing_ok=True)  # of a run that this search replaces
        discard_events(recorder.folder)
        return _run(recorder, _with_notes(prepared, grid.notes), watch)


def resume(
    folder: str | Path,
    changes: Mapping[str, Any] | None = None,
    override: bool = False,
    watch: Watch = ignore,
) -> Found:
    """Go on with a search from its saved state. Raises CheckpointError if the folder holds no search.

    The result is that of a search which was never stopped, to the last digit on the same CPU. The arguments
    are those of `cnsn_cli.resume`.
    """
    _check_processes()
    folder = Path(folder)
    if not (folder / STATE).exists():
        raise CheckpointError(f"cannot read {folder / STATE}: No such file or directory")
    with collected(), locked(folder), open_state(folder / STATE) as saved:
        check_kind(folder, saved.state.request, search=True)
        request = asked_again(folder, saved.state, changes or {}, override)
        return _run(*going_on(folder, saved, request, changes or {}, override), watch)


def _check_call(max_macs: Sequence[int], options: Mapping[str, Any]) -> None:
    _check_processes()
    if not max_macs:
        raise ArgumentError("max_macs is empty: give at least one budget")
    for name in NO_OPTIONS:
        if name in options:
            raise ArgumentError(f"a search has no {name}: leave it out")


def _check_processes() -> None:
    if distributed.launched():
        raise ProcessError("a search runs in one process: start it without torchrun")


def shortened(recipe: Recipe, epochs: int, pretrained: bool = False) -> Recipe:
    """The recipe of a search: few epochs, a learning rate that falls to 0, and the base-model as teacher."""
    plain = {} if pretrained else {"pretrained_lr": 1, "step_down_init": "random"}
    return recipe.with_changes(
        {
            "epochs": epochs,
            "schedule": "cosine",
            "warmup_epochs": min(recipe.warmup_epochs, epochs / 3),
            "distill": "base",
            "val_split": recipe.val_split or HELD_OUT,
            "gradient_scale": (1.0,),
            "final_scale": (),
            "ema": 0,
            "bn": "private",
            **plain,
        }
    )


def _with_notes(prepared: Prepared, notes: tuple[str, ...]) -> Prepared:
    dataset = prepared.dataset
    return prepared._replace(dataset=replace(dataset, notes=dataset.notes + notes))


def _run(recorder: Recorder, prepared: Prepared, watch: Watch) -> Found:
    trainer, request = prepared.trainer, recorder.request
    watch(started(prepared, request))
    if trainer.epoch < trainer.recipe.epochs:
        run_steps(recorder, watch)
    network = trainer.network
    found = rank(network.models(), model_costs(network), trainer.train, trainer.held_out, request.budgets)
    with stage(f"drawing {FOUND_PICTURE}"):
        draw(found, recorder.folder / FOUND_PICTURE)
    write_text(recorder.folder / FOUND, json.dumps(asdict(found), indent=2) + "\n")
    return found
