"""Tables of images: the images, classes and splits of a CSV file, and what is wrong with one."""

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch

from cnsn_cli.data import datasets
from cnsn_cli.data.datasets import load_dataset, load_test
from cnsn_cli.data.split import FileSplit
from cnsn_cli.errors import DataError, TrainingError
from cnsn_cli.task import Task
from cnsn_cli.training.data_record import check_data, record_data
from cnsn_cli.training.request import decide
from tests.conftest import TINY
from tests.data.test_datasets import write_image
from tests.training.test_arguments import asked

HEADINGS = ("image", "label", "split")


def rows_of(folder: Path, names: tuple[str, ...] = ("train", "test")) -> list[tuple[str, str, str]]:
    """Path, class and split of all images of a folder."""
    found = [path for name in names for path in sorted((folder / name).rglob("*.png"))]
    return [(str(path), path.parent.name, path.relative_to(folder).parts[0]) for path in found]


def write_table(path: Path, rows: list[tuple[str, ...]], headings: tuple[str, ...] = HEADINGS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([headings, *rows])
    return path


def same(found: datasets.Dataset, expected: datasets.Dataset) -> bool:
    splits = [(found.train, expected.train), (found.test, expected.test)]
    return found.task == expected.task and all(
        torch.equal(torch.cat(list(one.in_order(100))), torch.cat(list(other.in_order(100))))
        and torch.equal(one.labels, other.labels)
        for one, other in splits
    )


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three training images of the classes a and b, and one test image of each."""
    for split, count in (("train", 3), ("test", 1)):
        for value, name in ((10, "a"), (200, "b")):
            for number in range(count):
                write_image(tmp_path / "photos" / split / name / f"{number}.png", value + number)
    return tmp_path / "photos"


def relative(photos: Path) -> list[tuple[str, ...]]:
    """The rows of a table beside the folder `photos`."""
    return [(str(Path(path).relative_to(photos.parent)), *more) for path, *more in rows_of(photos)]


def test_a_table_and_its_folder_are_one_data_set(image_folder, tmp_path):
    table = write_table(tmp_path / "table.csv", rows_of(image_folder))
    assert same(load_dataset(str(table)), load_dataset(str(image_folder)))


def test_images_are_relative_to_the_table(photos, monkeypatch):
    write_table(photos.parent / "table.csv", relative(photos))
    expected = load_dataset(str(photos))
    monkeypatch.chdir(photos)
    assert same(load_dataset("../table.csv"), expected)
    monkeypatch.chdir(photos.parent)
    assert same(load_dataset("table.csv"), expected)


@pytest.mark.parametrize("headings", [("file", "class"), ("File_Name", "LABEL"), ("x", "y")])
def test_columns_are_found_or_named(photos, headings):
    rows = [("", label, path, split) for path, label, split in relative(photos)]
    table = write_table(photos.parent / "t.csv", rows, ("notes", headings[1], headings[0], "split"))
    names = {"image_column": "x", "label_column": "y"} if headings[0] == "x" else {}
    assert same(load_dataset(str(table), **names), load_dataset(str(photos)))
    task = load_dataset(str(photos)).task
    assert load_test(str(table), task, **names).labels.tolist() == [0, 1]


def test_test_images_may_have_a_table_of_their_own(photos):
    rows = [row[:2] for row in relative(photos)]
    train = write_table(photos.parent / "train.csv", rows[:6], HEADINGS[:2])
    test = write_table(photos.parent / "test.csv", rows[6:], HEADINGS[:2])
    expected = load_dataset(str(photos))
    assert same(load_dataset(str(train), test_data=str(test)), expected)
    assert load_test(str(test), expected.task).labels.tolist() == [0, 1]
    both = write_table(photos.parent / "both.csv", relative(photos))
    assert same(load_dataset(str(train), test_data=str(both)), expected)


def test_val_stands_for_test(photos):
    rows = [(path, label, split.replace("test", "val")) for path, label, split in relative(photos)]
    table = write_table(photos.parent / "t.csv", rows)
    assert same(load_dataset(str(table)), load_dataset(str(photos)))
    write_table(table, [*rows, (*relative(photos)[6][:2], "test")])
    assert load_dataset(str(table)).test.labels.tolist() == [0]


def test_classes_are_sorted_and_composed(photos):
    """As folders are: "10" before "2", and two spellings of one name are one class."""
    paths = [row[0] for row in relative(photos)]
    decomposed = unicodedata.normalize("NFD", "é")
    labels = ["2", "10", "é", decomposed, "b", "2", "2", "10"]
    splits = ["train"] * 6 + ["test"] * 2
    rows = list(zip(paths, labels, splits, strict=True))
    dataset = load_dataset(str(write_table(photos.parent / "t.csv", rows)))
    assert dataset.task.class_names == ("10", "2", "b", "é")
    assert dataset.train.labels.tolist() == [1, 0, 3, 3, 2, 1]
    assert dataset.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\r\n", b"\n"),
        lambda text: text.replace(b"\r\n", b"\r"),
        lambda text: text.replace(b",", b" , "),
        lambda text: text.replace(b"\r\n", b"\r\n\r\n,,\r\n"),
        lambda text: text.replace(b"photos/train/a/0.png", b'"photos/train/a/0.png"'),
    ],
    ids=["byte order mark", "unix", "old mac", "spaces", "blank rows", "quotes"],
)
def test_spellings_of_a_table(photos, change):
    table = write_table(photos.parent / "t.csv", relative(photos))
    table.write_bytes(change(table.read_bytes()))
    assert same(load_dataset(str(table)), load_dataset(str(photos)))


def test_images_of_a_table_are_streamed_and_limited(photos, monkeypatch):
    table = write_table(photos.parent / "t.csv", relative(photos))
    assert same(load_dataset(str(table), limit_images=4), load_dataset(str(photos), limit_images=4))
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    dataset = load_dataset(str(table))
    assert isinstance(dataset.train, FileSplit)
    assert same(dataset, load_dataset(str(photos)))


def test_a_missing_file_has_a_row(photos, monkeypatch):
    """The row is that of a spreadsheet, which counts the headings and blank rows."""
    rows = relative(photos)
    table = write_table(photos.parent / "t.csv", [*rows[:2], ("", "", ""), *rows[2:]])
    (photos / "train/b/1.png").unlink()
    message = f"row 7 of {table}: cannot read image {photos}/train/b/1.png: there is no such file"
    with pytest.raises(DataError, match=f"^{message}$"):
        load_dataset(str(table))
    read = []
    monkeypatch.setattr("cnsn_cli.data.sources.read_image", lambda path, view=None: read.append(path))
    with pytest.raises(Exception, match="size"):
        load_dataset(str(table), keep=False)
    assert read[0] == f"{photos}/train/b/1.png"  # the missing file is found before another one is opened
    monkeypatch.undo()
    dataset = load_dataset(str(table), skip_bad=True)
    assert dataset.skipped == (message,)
    assert len(dataset.train) == 5


GOOD = b"image,label,split\na.png,a,train\nb.png,b,test\n"
WRONG = {
    "empty": (b"", "t.csv is empty: its first row names the columns, such as image,label,split"),
    "headings alone": (b"image,label\n\n", "t.csv has no rows below its headings image, label"),
    "no headings": (
        b"a.png,cat\n",
        "no column is known to hold the images: choose --image-column from a.png, cat",
    ),
    "no labels": (b"path,split\n", "to hold the classes: choose --label-column from path, split"),
    "two": (b"path,file,label\n", "the columns path and file may hold the images: choose --image-column"),
    "twice": (b"image,label,label\n", "t.csv has several columns 'label': rename all but one"),
    "too few": (GOOD + b"c.png,c\n", "row 4 of t.csv has 2 cells, and the table has 3 headings"),
    "too many": (GOOD + b"c,d.png,c,train\n", "row 4 of t.csv has 4 cells, and the table has 3 headings"),
    "no label": (GOOD + b"\nc.png,,train\n", "row 5 of t.csv has nothing in the column 'label'"),
    "no image": (GOOD + b" ,c,train\n", "row 4 of t.csv has nothing in the column 'image'"),
    "no split": (GOOD + b"c.png,c,\n", "row 4 of t.csv has nothing in the column 'split'"),
    "split": (GOOD + b"c.png,c,dev\n", "row 4 of t.csv has the split 'dev': choose train, test, val"),
    "NUL": (GOOD + b"c\0.png,c,test\n", "row 4 of t.csv has a NUL character in the column 'image'"),
    "latin": (GOOD + b"caf\xe9.png,c,test\n", "t.csv is no UTF-8 text: save it as CSV in UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "t.csv is no UTF-8 text: save it as CSV in UTF-8"),
    "quote": (GOOD + b'"c.png,c,test\n', "cannot read row 4 of t.csv: unexpected end of data"),
    "huge": (GOOD + b"c" * 200_000 + b",c,test\n", "cannot read row 4 of t.csv: field larger than field lim"),
    "no splits": (
        b"image,label\na.png,a\n",
        "t.csv has no column 'split' that says train or test: add it, or name a table of test images with "
        "--test-data",
    ),
    "no train": (b"image,label,split\na.png,a,test\n", "no row of t.csv has the split train"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_refused_in_one_line(cnsn, tmp_path, monkeypatch, name):
    text, message = WRONG[name]
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(text)
    result = cnsn("train", "--arch", TINY, "--exits", 1, "--data", "t.csv", "--out", "run")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert message in result.err
    assert not Path("run").exists()


def test_wrong_options_are_refused(cnsn, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    write_table(Path("t.csv"), relative(photos))
    write_table(Path("train.csv"), [row[:2] for row in relative(photos)[:6]], HEADINGS[:2])
    write_table(Path("other.csv"), [(relative(photos)[0][0], "c")], HEADINGS[:2])
    write_table(Path("no-tests.csv"), relative(photos)[:6])
    Path("folder.csv").mkdir()
    for words, message in {
        "--data t.csv --image-column path": "t.csv has no column 'path': choose --image-column from im",
        "--data t.csv --image-column label": "the column 'label' of t.csv cannot hold both images and",
        "--data t.csv --test-data other.csv": "t.csv has a column 'split' of its own: leave out --test",
        "--data train.csv --test-data no.csv": "cannot read no.csv: there is no such file",
        "--data train.csv --test-data photos": "--test-data photos is no table.csv",
        "--data train.csv --test-data folder.csv": "--test-data folder.csv is no table.csv",
        "--data train.csv --test-data other.csv": "class 'c' of the test images in other.csv is none of the",
        "--data no.csv": "cannot read no.csv: there is no such file",
        "--data no-tests.csv": "no row of no-tests.csv has the split test or val",
        "--data folder.csv": "folder.csv has no folder train/",
        "--data photos --label-column y": "--label-column goes with a table.csv, and photos is none: leav",
        "--data digits --test-data t.csv": "--test-data goes with a table.csv, and digits is none: leave",
        "--data train.tsv": "no data set or folder 'train.tsv': choose cifar10, cifar100, digits, a f",
    }.items():
        result = cnsn("train", "--arch", TINY, "--exits", 1, *words.split(), "--out", "run")
        assert (result.code, result.err.count("\n")) == (1, 1), words
        assert message in result.err
        assert not Path("run").exists()


def test_commands_evaluate_on_the_table_of_the_training_or_on_another_one(cnsn, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    rows = [row[:2] for row in relative(photos)]
    write_table(Path("train.csv"), rows[:6], ("x", "y"))
    write_table(Path("test.csv"), rows[6:], ("x", "y"))
    write_table(Path("more.csv"), rows, ("path", "class"))
    columns = ("--image-column", "x", "--label-column", "y")
    words = ("--recipe", "quick", "--epochs", 1, "--batch-size", 2, "--image-size", 32, "--out", "run")
    tables = ("--data", "train.csv", "--test-data", "test.csv", *columns)
    assert cnsn("train", "--arch", TINY, "--exits", 1, *tables, *words).code == 0

    def evaluated(*options):
        result = cnsn("eval", "run/best.safetensors", "--json", *options)
        assert result.code == 0, result.err
        found = json.loads(result.out)
        return found["data"], found["images"]

    assert evaluated() == ("test.csv", 2)
    assert evaluated("--data", "more.csv") == ("more.csv", 8)
    assert "choose --image-column from x, y" in cnsn("eval", "run/best.safetensors", "--data", "test.csv").err
    card = cnsn("card", "run/best.safetensors").out
    assert "--data train.csv --image-column x --label-column y --test-data test.csv --image-size 32" in card
    small = cnsn("detach", "run/best.safetensors", "--submodel", 0, "--recalibrate", 1, "-o", "s.safetensors")
    assert "2 test images" in small.out
    frozen = ("--freeze-base", "run/best.safetensors", "--exits", 4, *words[:-1], "frozen")
    assert cnsn("train", *frozen).code == 0
    assert json.loads(cnsn("info", "frozen/last.safetensors", "--json").out)["label_column"] == "y"
    Path("test.csv").unlink()
    message = (
        "cannot read test.csv: there is no such file (trained on train.csv; give another place with --data)"
    )
    assert message in cnsn("eval", "run/best.safetensors").err
    shutil.move("train.csv", "gone.csv")
    assert "was trained on train.csv, and there is no such file: give --data" in cnsn("train", *frozen).err


def test_a_table_with_other_classes_is_other_data(photos, tmp_path):
    """A resumed run notices them, although names, sizes, pixels and numbers of images are the same."""
    rows, records = relative(photos), []
    others = [(rows[0][0], "b", "train"), *rows[1:5], (rows[5][0], "a", "train"), *rows[6:]]
    for order in (rows, rows, others):
        table = str(write_table(photos.parent / "t.csv", order))
        request = decide(asked()).with_changes({"data": table})
        records.append(record_data(request, load_dataset(table)))
    check_data(tmp_path, records[0], records[1], False)
    with pytest.raises(TrainingError, match="training images came, went, or have other names"):
        check_data(tmp_path, records[0], records[2], False)


def test_a_class_name_that_no_file_can_record_is_refused_before_training(cnsn, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    write_table(Path("t.csv"), [(path, label * 256, split) for path, label, split in relative(photos)])
    result = cnsn("train", "--arch", TINY, "--exits", 1, "--data", "t.csv", "--batch-size", 2, "--out", "run")
    assert result.code == 1
    assert "a class has a name of more than 255 characters" in result.err
    assert not list(Path("run").glob("*"))


def test_a_folder_has_no_class_of_a_task_that_a_table_lacks(photos):
    table = write_table(photos.parent / "t.csv", relative(photos))
    with pytest.raises(DataError, match=r"class 'a' of the test images in .*t\.csv is none of the 2 classes"):
        load_test(str(table), Task(("b", "c"), 32, 3, (0,) * 3, (1,) * 3))
