"""Resuming with the data of the run, with other data, and with the same data elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from cnsn_cli.data import datasets
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.resume_state import read_state, write_state
from cnsn_cli.training.run import train
from tests.conftest import TINY
from tests.training.test_resume import Stop, stop_after


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory, image_folder, quick) -> Path:
    """A run that was stopped after the first of two epochs. Its data, beside it, are bitmaps of one size."""
    folder = tmp_path_factory.mktemp("stopped")
    for path in sorted(image_folder.rglob("*.png")):
        target = folder / "photos" / path.relative_to(image_folder).with_suffix(".bmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    begin(folder / "photos", folder / "run", quick)
    return folder / "run"


def begin(data: Path | str, run: Path, quick: Recipe) -> None:
    recipe = quick.model_copy(update={"epochs": 2})
    with pytest.raises(Stop):
        train(TINY, (), str(data), recipe, run, watch=stop_after(1))


@pytest.fixture
def stopped(stopped_run, tmp_path):
    """The stopped run. Afterwards the run and its data are as they were before."""
    shutil.copytree(stopped_run.parent, tmp_path / "before")
    yield stopped_run
    shutil.rmtree(stopped_run.parent)
    shutil.copytree(tmp_path / "before", stopped_run.parent)


def add_picture(data: Path) -> None:
    shutil.copy(data / "train/dark/00.bmp", data / "train/dark/zz.bmp")


def swap_labels(data: Path) -> None:
    for split in ("train", "test"):
        (data / split / "dark").rename(data / split / "x")
        (data / split / "bright").rename(data / split / "dark")
        (data / split / "x").rename(data / split / "bright")


def rename_class(data: Path) -> None:
    for split in ("train", "test"):
        (data / split / "dark").rename(data / split / "night")


def add_class(data: Path) -> None:
    shutil.copytree(data / "train/dark", data / "train/new")


def rename_picture(data: Path) -> None:
    (data / "test/dark/00.bmp").rename(data / "test/dark/zz.bmp")


def replace_picture(data: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(data / "test/dark/00.bmp")


def shrink_first(data: Path) -> None:
    Image.new("RGB", (16, 16)).save(data / "train/bright/00.bmp")


CHANGES_OF_DATA = [
    (add_picture, "was trained on other data (32 -> 33 training images of class 'dark'): restore"),
    (swap_labels, "(training images have other contents, test images have other contents)"),
    (rename_class, "(class 'night' is new, class 'dark' is gone, training images came, went, or have other"),
    (rename_picture, "(test images came, went, or have other names)"),
    (replace_picture, "(test images have other contents)"),
    (add_class, "cannot go on with other data (class 'new' is new, training images came, went"),
    (shrink_first, "cannot go on with other data (images of 32 -> 16 pixels a side"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES_OF_DATA)
def test_other_data_are_refused(cnsn, stopped, change, message):
    change(stopped.with_name("photos"))
    result = cnsn("train", "--resume", stopped)
    assert result.code == 1
    assert message in result.err
    assert result.err.count("\n") == 1
    if "cannot go on" in message:
        assert message in cnsn("train", "--resume", stopped, "--override").err


@pytest.mark.parametrize("change", [rename_class, add_picture])
def test_other_data_are_accepted(cnsn, stopped, change):
    change(stopped.with_name("photos"))
    assert cnsn("train", "--resume", stopped, "--override").code == 0
    assert cnsn("train", "--resume", stopped).code == 0  # the state has the record of the new data


def test_a_copy_of_the_data_is_the_same_data(cnsn, stopped):
    data = stopped.with_name("photos")
    shutil.copytree(data, stopped.with_name("copy"), copy_function=shutil.copyfile)  # with new times
    shutil.rmtree(data)
    shutil.move(stopped.with_name("copy"), data)
    assert cnsn("train", "--resume", stopped).code == 0


def test_images_that_are_read_when_needed_have_a_record_too(cnsn, stopped, monkeypatch):
    """Without the digest of pixels, which is for images in memory, their mean tells."""
    path, data = stopped / "state.safetensors", stopped.with_name("photos")
    state = read_state(path)
    splits = {name: getattr(state.data, name).model_copy(update={"pixels": ""}) for name in ("train", "test")}
    write_state(
        path, load_file(path), state.model_copy(update={"data": state.data.model_copy(update=splits)})
    )
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    Image.new("RGB", (32, 32), "red").save(data / "train/dark/00.bmp")
    assert "(training images have other contents)" in cnsn("train", "--resume", stopped).err


def test_states_without_a_record_are_accepted(cnsn, stopped):
    path = stopped / "state.safetensors"
    write_state(path, load_file(path), read_state(path).model_copy(update={"data": None, "started_in": None}))
    add_picture(stopped.with_name("photos"))
    assert cnsn("train", "--resume", stopped).code == 0


def test_relative_data_are_looked_for_where_the_run_was_started(cnsn, stopped, monkeypatch, tmp_path, quick):
    monkeypatch.chdir(stopped.parent)
    begin("photos", tmp_path / "run", quick)
    (tmp_path / "photos").mkdir()  # without images
    monkeypatch.chdir(tmp_path)
    assert cnsn("train", "--resume", "run").code == 0
    assert json.loads(cnsn("info", "run/last.safetensors", "--json").out)["data"] == "photos"
