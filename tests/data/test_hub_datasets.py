"""Data sets of Hugging Face: folders of Parquet files, columns, splits, and what is wrong."""

import json
import sys
from pathlib import Path
from types import ModuleType

import datasets as library
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as Picture

from cnsn_cli.data import datasets
from cnsn_cli.data.datasets import load_dataset, load_test
from cnsn_cli.data.split import FileSplit
from cnsn_cli.errors import DataError, ExtraError, TrainingError
from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.training.data_record import check_data, record_data
from cnsn_cli.training.request import decide
from tests.conftest import TINY, built, saved
from tests.data import test_jpeg
from tests.data.test_table import photos as photos
from tests.data.test_table import rows_of, same
from tests.training.test_arguments import asked

WORDS = (
    "--arch",
    TINY,
    "--exits",
    1,
    "--recipe",
    "quick",
    "--epochs",
    1,
    "--batch-size",
    2,
    "--image-size",
    32,
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    """Nothing of a test stays in the user's cache, and nothing is printed while Parquet files are written."""
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    library.disable_progress_bars()
    yield
    library.enable_progress_bars()


def encoded(paths: list[str]) -> list[dict[str, object]]:
    return [{"bytes": Path(path).read_bytes(), "path": Path(path).name} for path in paths]


def write_parquet(root: Path, split: str, columns: dict[str, list[object]], kinds: dict[str, object]) -> None:
    dataset = Dataset.from_dict(columns, features=Features(kinds))
    (root / "data").mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")


def parquet_of(
    folder: Path, root: Path, test: str = "test", label: object = None, names: str = "image,label"
) -> str:
    """A folder of Parquet files with the images of a folder, in the order of the folder."""
    image, classes = names.split(",")
    kind = label or ClassLabel(names=sorted(path.name for path in (folder / "train").iterdir()))
    for split in ("train", "test"):
        rows = rows_of(folder, (split,))
        columns = {image: encoded([path for path, *_ in rows]), classes: [name for _, name, _ in rows]}
        write_parquet(root, test if split == "test" else split, columns, {image: Picture(), classes: kind})
    return f"hf:{root}"


def test_parquet_and_its_folder_are_one_data_set(image_folder, tmp_path):
    data = parquet_of(image_folder, tmp_path / "set")
    found, expected = load_dataset(data), load_dataset(str(image_folder))
    assert same(found, expected)
    assert same(load_dataset(data, limit_images=10), load_dataset(str(image_folder), limit_images=10))
    assert load_test(data, expected.task).labels.equal(expected.test.labels)


@pytest.mark.parametrize(
    ("label", "names", "given"),
    [
        (Value("string"), "image,label", {}),
        (Value("large_string"), "picture,class", {}),
        (None, "picture,kind", {}),
        (Value("string"), "x,y", {"label_column": "y"}),
    ],
)
def test_columns_are_found_or_named(photos, tmp_path, label, names, given):
    data = parquet_of(photos, tmp_path / "set", "validation", label, names)
    assert same(load_dataset(data, **given), load_dataset(str(photos)))


def test_classes_are_in_the_order_of_the_data_set(photos, tmp_path):
    """Names have the order of the data set, numbers that of numbers."""
    images = encoded([path for path, *_ in rows_of(photos, ("train",))])
    for kind, values, names, labels in (
        (ClassLabel(names=["z", "a"]), ["a", "z"] * 3, ("z", "a"), [1, 0] * 3),
        (Value("int64"), [10, 9, 10, 2, 9, 2], ("2", "9", "10"), [2, 1, 2, 0, 1, 0]),
        (Value("uint8"), [7, 7, 7, 0, 0, 0], ("0", "7"), [1, 1, 1, 0, 0, 0]),
    ):
        root = tmp_path / str(len(names)) / names[0]
        for split in ("train", "test"):
            write_parquet(
                root, split, {"image": images, "label": values}, {"image": Picture(), "label": kind}
            )
        dataset = load_dataset(f"hf:{root}")
        assert dataset.task.class_names == names
        assert dataset.train.labels.tolist() == labels


def test_pictures_are_read_as_those_of_folders(tmp_path):
    """They are turned upright, and large JPEGs are decoded at a smaller size."""
    for split in ("train", "test"):
        for number, name in enumerate("ab"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            test_jpeg.saved(tmp_path / "photos" / split / name / "0.png", (815, 601), 6 * number or 1)
    data = parquet_of(tmp_path / "photos", tmp_path / "set")
    assert same(load_dataset(data, image_size=64), load_dataset(str(tmp_path / "photos"), image_size=64))


def test_images_are_streamed(image_folder, tmp_path, monkeypatch):
    data, expected = parquet_of(image_folder, tmp_path / "set"), load_dataset(str(image_folder))
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    dataset = load_dataset(data)
    assert isinstance(dataset.train, FileSplit)
    assert same(dataset, expected)


def test_a_folder_of_images_is_a_data_set_of_hugging_face_too(photos):
    """The library names the files; their bytes are not copied."""
    assert same(load_dataset(f"hf:{photos}"), load_dataset(str(photos)))


def test_validation_stands_for_a_test_split_without_labels(photos, tmp_path):
    """On the Hub, the classes of test images are often secret."""
    data = parquet_of(photos, tmp_path / "set", "validation")
    images = encoded([path for path, *_ in rows_of(photos, ("test",))])
    kinds = {"image": Picture(), "label": ClassLabel(names=["a", "b"])}
    write_parquet(tmp_path / "set", "test", {"image": images, "label": [-1, -1]}, kinds)
    dataset = load_dataset(data)
    assert same(dataset, load_dataset(str(photos)))
    assert dataset.notes == (
        f"the split test of {data} has no labels: the split validation has the test images",
    )
    write_parquet(tmp_path / "set", "test", {"image": images, "label": [-1, 1]}, kinds)
    with pytest.raises(DataError, match=r"test\[0\] has no class in the column 'label': -1"):
        load_dataset(data)


def test_a_picture_that_cannot_be_read_has_a_number(photos, tmp_path):
    images = [
        *encoded([path for path, *_ in rows_of(photos, ("train",))]),
        {"bytes": b"GIF89a", "path": "x.gif"},
    ]
    kinds = {"image": Picture(), "label": Value("string")}
    for split in ("train", "test"):
        write_parquet(tmp_path / "set", split, {"image": [*images, None], "label": [*"aaabbbba"]}, kinds)
    data = f"hf:{tmp_path}/set"
    message = f"cannot read image {data} train[6]: it is not a valid BMP, JPEG"
    with pytest.raises(DataError) as error:
        load_dataset(data)
    assert str(error.value).startswith(message)
    dataset = load_dataset(data, skip_bad=True)
    assert dataset.skipped[0].startswith(message)
    assert dataset.skipped[1] == f"cannot read image {data} train[7]: it is empty"
    assert len(dataset.train) == 6


def test_wrong_data_are_refused_in_one_line(cnsn, photos, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    parquet_of(photos, Path("set"))
    parquet_of(photos, Path("no-test"), "other")
    parquet_of(photos, Path("floats"), label=None, names="image,kind")
    images = encoded([path for path, *_ in rows_of(photos, ("train",))])
    kinds = {"image": Picture(), "label": ClassLabel(names=["a", "b", "c"]), "score": Value("float32")}
    columns = {"image": images, "label": [*"aaabbb"], "score": [0.5] * 6}
    for split in ("train", "test"):
        write_parquet(Path("lacks"), split, columns, kinds)
        write_parquet(
            Path("two"), split, {**columns, "other": columns["label"]}, {**kinds, "other": kinds["label"]}
        )
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/train.parquet").write_bytes(b"PAR1 garbage")
    Path("file").touch()
    for words, message in {
        "hf:set --image-column photo": "hf:set has no column 'photo': choose --image-column from image",
        "hf:set --image-column label": "the column 'label' of hf:set has no images: choose --image-column",
        "hf:set --test-data t.csv": "--test-data goes with a table.csv, and hf:set is none: leave it out",
        "hf:lacks": "no images of class 'c' in hf:lacks",
        "hf:lacks --label-column score": "the column 'score' of hf:lacks train has Value('float32'), no",
        "hf:two": "hf:two: the columns label and other may hold the classes: choose --label-column",
        "hf:no-test": "hf:no-test has no split test or validation: it has train, other",
        "hf:empty": "cannot open hf:empty: The directory at ",
        "hf:broken": "cannot open hf:broken: ",
        "hf:file": "hf:file: there is no such folder, and the Hub has no such names",
        "hf:./nowhere": "hf:./nowhere: there is no such folder, and the Hub has no such names",
        "hf:a/b/c": "hf:a/b/c: there is no such folder, and the Hub has no such names",
        "hf:": "hf:: there is no such folder, and the Hub has no such names",
    }.items():
        result = cnsn("train", *WORDS, "--data", *words.split(), "--out", "run")
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1), result
        assert message in result.err
        assert not Path("run").exists()
    assert not caplog.records  # the library also logs what is wrong


def test_without_the_library_the_command_says_what_to_install(monkeypatch, photos):
    for module, message in (
        (None, "--data hf: needs the library datasets: pip install 'cnsn-cli[datasets]'"),
        (
            "3.6.0",
            "--data hf: needs datasets 4 or newer, and 3.6.0 is here: pip install 'cnsn-cli[datasets]'",
        ),
        ("", "--data hf: needs the library datasets: pip install 'cnsn-cli[datasets]'"),
    ):
        stand_in = module if module is None else ModuleType("datasets")
        if module:
            stand_in.__version__ = module
        monkeypatch.setitem(sys.modules, "datasets", stand_in)
        with pytest.raises(ExtraError) as error:
            load_dataset(f"hf:{photos}")
        assert str(error.value) == message


def test_commands_use_a_folder_that_a_file_records(cnsn, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parquet_of(photos, Path("set"), names="x,y")
    library.enable_progress_bars()  # cnsn hides them, and leaves them as they are for others
    result = cnsn("train", *WORDS, "--data", "hf:set", "--out", "run")
    assert result.code == 0, result.err
    assert "Generating" not in result.err
    assert not library.utils.are_progress_bars_disabled()
    best = "run/best.safetensors"
    evaluated = json.loads(cnsn("eval", best, "--json").out)
    assert (evaluated["data"], evaluated["images"]) == ("hf:set", 2)
    monkeypatch.chdir("/")  # a resumed run looks where it was started
    resumed = cnsn("train", "--resume", tmp_path / "run", "--epochs", 2, "--override")
    assert resumed.code == 0, resumed.err


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a name was looked up")


def test_a_name_that_a_file_records_is_never_fetched(cnsn, tmp_path, monkeypatch, photos):
    task = load_dataset(str(photos)).task
    file = saved(tmp_path / "x.safetensors", built(TINY, (1,), task), TINY, "hf:somebody/photos")
    monkeypatch.setattr(library, "load_dataset_builder", refuse)
    message = (
        "hf:somebody/photos is not here, and a name in a file is not fetched: give --data hf:somebody/photos"
    )
    for words in (
        ("eval", file),
        ("eval", file, "--recalibrate", 1),
        ("export", file, "--to", "onnx", "--quantize", "int8", "-o", tmp_path / "x.onnx"),
        ("detach", file, "--submodel", 0, "--recalibrate", 1, "-o", tmp_path / "small.safetensors"),
        ("train", "--freeze-base", file, "--exits", 1, "--out", tmp_path / "frozen"),
    ):
        result = cnsn(*words)
        assert (result.code, message in result.err) == (1, True), result
    card = cnsn("card", file).out
    assert "--data hf:somebody/photos" in card
    assert "- somebody/photos" in card


def test_a_name_is_fetched_if_it_is_given(cnsn, photos, tmp_path, monkeypatch):
    """The library opens a folder in place of the Hub. A resumed run asks for the name once more."""
    parquet_of(photos, tmp_path / "set")
    load, names = library.load_dataset_builder, []

    def fetch(name):
        names.append(name)
        return load(str(tmp_path / "set"))

    monkeypatch.setattr(library, "load_dataset_builder", fetch)
    run = tmp_path / "run"
    words = ("train", *WORDS, "--data", "hf:somebody/photos", "--out", run)
    assert cnsn(*words).code == 0
    assert set(names) == {"somebody/photos"}
    assert metadata_in(run / "best.safetensors").data == "hf:somebody/photos"
    more = ("train", "--resume", run, "--epochs", 2, "--override")
    assert "is not fetched: give --data hf:somebody/photos" in cnsn(*more).err
    assert cnsn(*more, "--data", "hf:somebody/photos").code == 0


def test_a_revision_of_the_hub_is_part_of_the_record(monkeypatch, photos, tmp_path):
    """On the Hub, the library gives each file an address that has the revision in it."""
    parquet_of(photos, tmp_path / "set")
    load = library.load_dataset_builder
    request = decide(asked()).with_changes({"data": "hf:somebody/photos"})
    records = []
    for revision in ("1" * 40, "1" * 40, "2" * 40):

        def fetch(name, revision=revision):
            builder = load(str(tmp_path / "set"))
            address = f"hf://datasets/{name}@{revision}/data/train-00000-of-00001.parquet"
            monkeypatch.setattr(builder.config, "data_files", {"train": [address], "test": [address]})
            monkeypatch.setattr(builder, "download_and_prepare", lambda: None)
            return builder

        load(str(tmp_path / "set")).download_and_prepare()
        monkeypatch.setattr(library, "load_dataset_builder", fetch)
        records.append(record_data(request, load_dataset("hf:somebody/photos")))
    first, again, other = records
    check_data(tmp_path, first, again, False)
    with pytest.raises(TrainingError, match="training images came, went, or have other names"):
        check_data(tmp_path, first, other, False)
