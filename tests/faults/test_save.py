"""Whatever fails while a run is saved, its newest or its previous state can be loaded."""

import errno
import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cnsn_cli.backbones import registry
from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import OutputError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.recorder import Recorder
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run_folder import FILES, locked
from cnsn_cli.training.setup import prepare
from tests.faults.filelayer import FileLayer
from tests.faults.forked import forked
from tests.faults.test_mutations import many, read_state_tensors

FAULTS = (errno.EIO, errno.ENOSPC, "before", "after")


@pytest.fixture
def saving(tiny, tmp_path):
    """The folder of a run after its first epoch, and a function that saves the second epoch."""
    request = read_state(tiny["state"]).request
    recipe = load_recipe("quick", {"epochs": 2, "batch_size": 4})
    trainer, *_ = prepare(replace(request, recipe=recipe), registry.find(request.arch))
    folder = tmp_path / "saved"
    folder.mkdir()
    request = replace(request, recipe=recipe)
    recorder = Recorder(folder, trainer, request, registry.find(request.arch))
    recorder.start()
    first, second = (event for event in trainer.run() if isinstance(event, Epoch))
    trainer.epoch = 1
    recorder.take(first)
    trainer.epoch = 2

    def save(target: Path, layer: FileLayer) -> None:
        recorder.folder = target
        recorder.best = None  # so that best is written too
        layer.install()
        try:
            recorder.take(second)
        except OutputError:
            sys.exit(1)

    return folder, save


def check(folder: Path) -> int:
    """Check that all files of the run can be loaded, and return the epoch of its state."""
    state = read_state(folder / "state.safetensors")
    assert read_state_tensors(folder / "state.safetensors")
    assert load(folder / "best.safetensors")
    assert load(folder / "last.safetensors")
    assert len(state.epochs()) == state.epoch
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] in ([1, 2][: state.epoch], [1, 2])
    assert load_recipe(str(folder / "recipe.toml")).epochs == 2
    return state.epoch


@many(11, 1)
def test_a_fault_in_any_call_of_the_save_path(saving, tmp_path, figures, count):
    """Every call to the system fails with EIO, with ENOSPC or with a kill; the short version takes a part."""
    folder, save = saving
    calls = count_calls(folder, save, tmp_path)
    cases = list(itertools.product(range(calls), FAULTS))[::count]
    ended, epochs = [], []
    for number, (at, fault) in enumerate(cases):
        target = shutil.copytree(folder, tmp_path / f"case{number}")
        result = forked(lambda at=at, fault=fault, target=target: save(target, FileLayer(at, fault)))
        assert result.code in ((-9,) if isinstance(fault, str) else (0, 1)), result  # 0: it only tidied up
        assert "Traceback" not in result.err, result
        epochs.append(check(target))
        ended.append(result.code)
        with locked(target):
            assert {path.name for path in target.iterdir()} <= {*FILES, ".lock"}
        shutil.rmtree(target)
    figures(
        f"{len(cases)} faults in {calls} calls, {ended.count(-9)} kills, {ended.count(1)} errors; "
        f"{epochs.count(1)} previous and {epochs.count(2)} newest states, all loadable"
    )


def count_calls(folder, save, tmp_path) -> int:
    target = shutil.copytree(folder, tmp_path / "sound")

    def count() -> None:
        layer = FileLayer()
        save(target, layer)
        print(layer.count)

    result = forked(count)
    assert result.code == 0, result
    assert check(target) == 2
    return int(result.out)


@many(5, 1)
def test_a_fault_while_a_file_is_detached(tiny, tmp_path, figures, count):
    """Either the previous file is still there, or the new file is complete."""
    target = tmp_path / "small.safetensors"

    def write(layer: FileLayer) -> None:
        layer.install()
        try:
            detach(tiny["network"], "base", target, force=True)
        except OutputError:
            sys.exit(1)
        print(layer.count)

    calls = int(forked(lambda: write(FileLayer())).out)
    names = []
    for at, fault in list(itertools.product(range(calls), FAULTS))[::count]:
        target.write_bytes(tiny["detached"].read_bytes())
        result = forked(lambda at=at, fault=fault: write(FileLayer(at, fault)))
        assert "Traceback" not in result.err, result
        names.append(load(target).name)
    figures(f"{len(names)} faults in {calls} calls; {names.count('submodel0')} times the previous file")
    assert set(names) == {"base", "submodel0"}
