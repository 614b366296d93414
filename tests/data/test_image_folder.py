"""Image folders as people have them: other pictures, folders of systems, Unicode, unlabelled test images."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cnsn_cli.data.datasets import load_dataset, load_test
from cnsn_cli.errors import DataError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.task import Task
from cnsn_cli.training.run import resume, train
from tests.commands.test_cli import one_line
from tests.conftest import TINY

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def write(path: Path, value: int = 0, size: tuple[int, int] = (32, 32), kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path, kind)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            for index in range(4):
                write(tmp_path / split / name / f"{index}.png", 99 * number + index)
    return tmp_path


def training(folder: Path, *more: object) -> tuple[object, ...]:
    words = ("train", "--arch", TINY, "--exits", 1, "--data", folder, "--recipe", "quick", "--epochs", 1)
    return (*words, "--batch-size", 4, "--out", folder / "run", *more)


SYSTEMS = [
    "@eaDir",
    "__MACOSX",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "#recycle",
    ".Trash-0",
]


@pytest.mark.parametrize("name", [*SYSTEMS, "@EADIR", "found.000", "__pycache__"])
def test_folders_of_systems_are_no_classes_and_hold_no_images(photos, name):
    for split in ("train", "test"):
        write(photos / split / name / "x.png")
        write(photos / split / "a" / name / "0.png" / "thumb.jpg", kind="JPEG")
    dataset = load_dataset(str(photos))
    assert dataset.task.class_names == ("a", "b")
    assert (len(dataset.train), len(dataset.test)) == (8, 8)
    assert dataset.notes == ()


def test_predict_looks_into_no_folder_of_a_system(cnsn, checkpoint, photos):
    write(photos / "train" / "a" / "@eaDir" / "0.png" / "thumb.png")
    rows = json.loads(cnsn("predict", checkpoint, photos / "train", "--json").out)["images"]
    assert len(rows) == 8


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jif", ".mpo", ".jpg"])
def test_a_jpeg_by_another_name_is_read(photos, suffix):
    write(photos / "train" / "a" / f"9{suffix}", 200, kind="JPEG")
    found = load_dataset(str(photos)).train.pixels[4]
    assert found.float().mean() == pytest.approx(200, abs=2)


def test_other_pictures_are_counted_and_named(cnsn, checkpoint, photos):
    for name in ("train/a/x.gif", "train/b/deep/y.GIF", "train/b/z.heic", "test/a/x.gif"):
        write(photos / name, kind="GIF")
    for name in ("train/loose.png", "train/a/notes.txt", "train/a/.hidden.gif", "train/__MACOSX/x.gif"):
        write(photos / name)
    trained = cnsn(*training(photos))
    assert trained.code == 0, trained.err
    notes = [line.split(";")[0] for line in trained.err.splitlines()[:3]]
    assert notes == [
        f"pictures left out in {photos}/train: 2 .gif, 1 .heic",
        f"images left out in {photos}/train: 1 that are in no class folder",
        f"pictures left out in {photos}/test: 1 .gif",
    ]
    assert "training on 8 images" in trained.err
    evaluated = cnsn("eval", photos / "run" / "best.safetensors")
    assert f"pictures left out in {photos}/test: 1 .gif" in evaluated.err
    predicted = cnsn("predict", checkpoint, photos / "train" / "b", "--json")
    assert f"pictures left out in {photos}/train/b: 1 .gif, 1 .heic; cnsn reads .apng, " in predicted.err
    assert len(json.loads(predicted.out)["images"]) == 4


def test_a_class_of_other_pictures_alone_says_why_it_is_empty(cnsn, checkpoint, photos):
    write(photos / "train" / "c" / "x.gif", kind="GIF")
    with pytest.raises(
        DataError, match=r"no images of class 'c' in .*/train; pictures left out in .*: 1 \.gif"
    ):
        load_dataset(str(photos))
    message = one_line(cnsn("predict", checkpoint, photos / "train" / "c"))
    assert message.startswith(f"no images in {photos}/train/c: expected files that end in .apng, ")
    assert f"; pictures left out in {photos}/train/c: 1 .gif" in message


def flat(folder: Path) -> None:
    for index in range(3):
        write(folder / f"{index}.png")


def unlabelled(folder: Path) -> None:
    flat(folder / "unlabelled")


def empty(folder: Path) -> None:
    folder.mkdir()


@pytest.mark.parametrize("make", [flat, unlabelled, empty])
def test_labelled_val_images_stand_for_unlabelled_test_images(cnsn, photos, make):
    (photos / "test").rename(photos / "val")
    make(photos / "test")
    trained = cnsn(*training(photos))
    assert trained.code == 0, trained.err
    note = f"{photos}/test has no images in class folders: {photos}/val has the test images"
    assert trained.err.splitlines()[0] == note
    shutil.rmtree(photos / "train")  # a file knows its classes
    if make is not unlabelled:
        evaluated = cnsn("eval", photos / "run" / "best.safetensors")
        assert evaluated.err.splitlines()[0] == note
        assert "on 8 test images" in evaluated.out


def test_labelled_test_images_come_first(photos):
    write(photos / "val" / "a" / "0.png")
    dataset = load_dataset(str(photos))
    assert (len(dataset.test), dataset.notes) == (8, ())
    shutil.rmtree(photos / "val" / "a")
    flat(photos / "val")
    assert len(load_dataset(str(photos)).test) == 8
    write(photos / "test" / "zebra" / "0.png")  # one wrong name among right ones is an error, as before
    with pytest.raises(DataError, match="class 'zebra' of the test images"):
        load_dataset(str(photos))


def test_unlabelled_test_images_alone_are_an_error(photos):
    shutil.rmtree(photos / "test")
    flat(photos / "test")
    with pytest.raises(DataError, match=r"no images in .*/test: expected .*/test/<class>/<image>"):
        load_dataset(str(photos))


def test_two_spellings_of_a_name_are_one_class(photos):
    (photos / "train" / "b").rename(photos / "train" / COMPOSED)
    (photos / "test" / "b").rename(photos / "test" / DECOMPOSED)
    write(photos / "train" / DECOMPOSED / "9.png", 77)
    assert len(list((photos / "train").iterdir())) == 3
    dataset = load_dataset(str(photos))
    assert dataset.task.class_names == ("a", COMPOSED)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 5
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 4
    assert len(load_test(str(photos), Task(("a", DECOMPOSED), 32, 3, (0,) * 3, (1,) * 3))) == 8


def test_a_file_and_a_run_know_a_class_in_either_spelling(photos, quick, cnsn):
    for split in ("train", "test"):
        (photos / split / "b").rename(photos / split / DECOMPOSED)
    recipe = quick.model_copy(update={"batch_size": 4})
    train(TINY, (1,), str(photos), recipe, photos / "run")
    path = photos / "run" / "best.safetensors"
    assert load(path).task.class_names == ("a", COMPOSED)
    with safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["cnsn"])
    metadata["task"]["class_names"] = ["a", DECOMPOSED]  # as older versions wrote it
    save_file(load_file(path), photos / "old.safetensors", {"cnsn": json.dumps(metadata)})
    assert load(photos / "old.safetensors").task == load(path).task
    for split in ("train", "test"):
        (photos / split / DECOMPOSED).rename(photos / split / COMPOSED)
    for file in (path, photos / "old.safetensors"):
        assert "on 8 test images" in cnsn("eval", file).out
    resume(photos / "run", {"epochs": 2}, override=True)
    train(TINY, (2,), str(photos), recipe, photos / "frozen", freeze_base=photos / "old.safetensors")


def test_an_image_size_that_does_not_fit_names_the_picture_that_decided(cnsn, photos):
    write(photos / "train" / "a" / "0.png", size=(40, 31))
    message = one_line(cnsn(*training(photos)))
    assert message == (
        "image size 31 is too small: the smallest size that fits is 32 (--image-size); "
        f"the first image decided: {photos}/train/a/0.png (40 x 31 pixels)"
    )
    message = one_line(cnsn(*training(photos, "--image-size", 30)))
    assert message == "image size 30 is too small: the smallest size that fits is 32 (--image-size)"
    (photos / "train" / "a" / "0.png").write_bytes(b"")
    write(photos / "train" / "a" / "1.png", size=(16, 64))
    message = one_line(cnsn(*training(photos, "--skip-bad")))
    assert f"the first image decided: {photos}/train/a/1.png (16 x 64 pixels)" in message
