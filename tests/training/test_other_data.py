"""Runs on images that are in no folder of classes train as runs on the folder that the images came from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cnsn_cli.training.metrics import Step
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import resume, train
from tests.conftest import TINY
from tests.data.test_hub_datasets import cache as cache  # for every test here
from tests.data.test_hub_datasets import parquet_of
from tests.data.test_table import rows_of, write_table


@pytest.fixture(scope="module")
def sets(tmp_path_factory, image_folder) -> dict[str, str]:
    """The same images, in different forms."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "folder": str(image_folder),
        "table": str(write_table(root / "table.csv", rows_of(image_folder))),
        "parquet": parquet_of(image_folder, root / "parquet"),
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last.safetensors")


def equal(run: Path, other: Path) -> bool:
    found, expected = weights(run), weights(other)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture(scope="module")
def recipe(quick) -> Recipe:
    """Worker processes read the images of such a run in every epoch."""
    return quick.with_changes({"crop": "resized", "crop_padding": 0})


@pytest.fixture(scope="module")
def on_folder(sets, recipe, tmp_path_factory) -> Path:
    """A run on the folder."""
    out = tmp_path_factory.mktemp("folder")
    train(TINY, (1,), sets["folder"], recipe, out / "run")
    return out / "run"


class Stop(Exception):
    pass


def stop_at(step: int):
    def watch(event):
        if isinstance(event, Step) and event.step == step:
            raise Stop

    return watch


@pytest.mark.parametrize("name", ["table", "parquet"])
def test_a_run_that_is_stopped_and_resumed_has_the_weights_of_the_folder(
    sets, recipe, on_folder, tmp_path, name
):
    with pytest.raises(Stop):
        train(TINY, (1,), sets[name], recipe, tmp_path / "run", watch=stop_at(5), save_every="3")
    assert read_state(tmp_path / "run" / "state.safetensors").step == 3  # of 8 in an epoch
    resume(tmp_path / "run")
    assert equal(tmp_path / "run", on_folder)
