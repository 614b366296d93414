"""What trackers have recorded of a run is what metrics.jsonl says.

The run is killed in its second epoch, when the first one has been logged and no state holds it, and then
resumed: the first epoch is trained again, and must not appear twice.
"""

import json
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cnsn_cli.errors import OutputError
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.run import Step, resume, train
from tests.conftest import TINY

TIMES = ("seconds", "images_per_second", "phases/")  # they differ when an epoch is trained again


class Kill(Exception):
    pass


class Tracked(NamedTuple):
    folder: Path
    lines: list[dict]
    store: str


def kill(event: object) -> None:
    if isinstance(event, Step) and event.epoch == 2:
        raise Kill


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, quick: Recipe) -> Tracked:
    """A run in TensorBoard and in MLflow's usual local store, killed and resumed."""
    root = tmp_path_factory.mktemp("tracked")
    folder, recipe = root / "run", quick.model_copy(update={"epochs": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with pytest.raises(Kill):
            train(
                TINY, (1, 4), str(image_folder), recipe, folder, track=("tensorboard", "mlflow"), watch=kill
            )
        failed = []
        resume(folder, watch=lambda event: failed.append(event) if "Failed" in str(type(event)) else None)
        assert failed == []
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        yield Tracked(folder, lines, f"sqlite:///{root}/mlflow.db")


def numbers(line: dict) -> dict[str, float]:
    """Every number of a line of metrics.jsonl under the name that trackers give it."""
    found = {name: line[name] for name in ("lr", "seconds", "images_per_second")}
    for part in ("train", "results", "pulls"):
        for values in line[part]:
            found |= {f"{part}/{name}/{values['name']}": values[name] for name in values if name != "name"}
    return found | {f"phases/{name.replace(' ', '_')}": took for name, took in line["phases"].items()}


def test_tensorboard(run):
    """TensorBoard's own reader finds every number, to the precision of float32, and nothing twice."""
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    assert set(tags) == numbers(run.lines[0]).keys()
    for tag in tags:
        expected = [(line["epoch"], np.float32(numbers(line)[tag])) for line in run.lines]
        assert [(point.step, np.float32(point.value)) for point in events.Scalars(tag)] == expected
    (picture,) = events.Images("plot")
    with Image.open(run.folder / "plot.png") as drawn:
        assert (picture.step, (picture.width, picture.height)) == (3, drawn.size)
    settings = events.Tensors("settings/text_summary")[-1]
    assert b"|lr|0.02|" in settings.tensor_proto.string_val[0]


def test_mlflow(run):
    """One run of MLflow, whose first epoch has the times of its first training."""
    client = mlflow.MlflowClient(run.store)
    (recorded,) = client.search_runs(["0"])
    assert (recorded.info.status, recorded.info.run_name) == ("FINISHED", "run")
    assert recorded.data.metrics.keys() == numbers(run.lines[0]).keys()
    for name in recorded.data.metrics:
        points = sorted((p.step, p.value) for p in client.get_metric_history(recorded.info.run_id, name))
        expected = [(line["epoch"], numbers(line)[name]) for line in run.lines]
        again = name.startswith(TIMES)
        assert points[again:] == expected[again:]
        assert len(points) == len(expected)
    settings = recorded.data.params
    assert (settings["arch"], settings["exits"], settings["lr"]) == (TINY, "(1, 4)", "0.02")
    assert {file.path for file in client.list_artifacts(recorded.info.run_id)} == {"plot.png", "recipe.toml"}


def test_a_run_that_replaces_another_one_has_no_old_events(run, image_folder, tmp_path, quick):
    """Also if it is not tracked itself; a folder with events alone is not overwritten unasked."""
    folder = tmp_path / "run"
    old = folder / "tensorboard" / "events.out.tfevents.1.old"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    with pytest.raises(OutputError, match="holds a run already: give --force"):
        train(TINY, (1,), str(image_folder), quick, folder)
    assert old.exists()
    train(TINY, (1,), str(image_folder), quick, folder, force=True)
    assert not old.exists()
