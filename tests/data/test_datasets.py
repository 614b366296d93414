import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from cnsn_cli.data import datasets
from cnsn_cli.data.datasets import channel_statistics, load_dataset, load_test
from cnsn_cli.data.pixels import normalise, preprocess
from cnsn_cli.data.split import FileSplit, MemorySplit
from cnsn_cli.errors import DataError
from cnsn_cli.task import Task


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def folder(root: Path, train: tuple[str, ...] = ("a", "b"), test: tuple[str, ...] = ("a", "b")) -> Path:
    for split, names in (("train", train), ("test", test)):
        for number, name in enumerate(names):
            for index in range(3):
                write_image(root / split / name / f"{index}.png", 50 * number + index)
    return root


def test_digits():
    dataset = load_dataset("digits")
    assert dataset.train.pixels.shape == (1437, 3, 32, 32)
    assert dataset.test.pixels.shape == (360, 3, 32, 32)
    assert dataset.task.class_names == tuple("0123456789")
    assert dataset.train.pixels.max() == 255
    assert torch.bincount(dataset.test.labels).min() >= 20


def test_an_image_folder(tmp_path):
    dataset = load_dataset(str(folder(tmp_path)))
    assert dataset.task.class_names == ("a", "b")
    assert dataset.task.image_size == 32
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 50, 51, 52]


def test_val_stands_for_test(tmp_path):
    folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(load_dataset(str(tmp_path)).test) == 6


def test_a_class_without_test_images_keeps_its_number(tmp_path):
    dataset = load_dataset(str(folder(tmp_path, train=("a", "b", "c"), test=("a", "c"))))
    assert dataset.test.labels.tolist() == [0, 0, 0, 2, 2, 2]


def test_hidden_files_and_folders_are_no_data(tmp_path):
    root = folder(tmp_path)
    write_image(root / "train" / ".thumbnails" / "x.png")
    write_image(root / "train" / "a" / "._0.png")
    assert len(load_dataset(str(root)).train) == 6


def test_images_are_resized_and_cut_to_a_square(tmp_path):
    root = folder(tmp_path)
    write_image(root / "train" / "a" / "9.png", size=(100, 60))
    dataset = load_dataset(str(root), image_size=16)
    assert dataset.train.pixels.shape == (7, 3, 16, 16)
    assert dataset.task.image_size == 16


def test_large_images_are_reduced_to_224(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "a" / "0.png", size=(400, 300))
    assert load_dataset(str(tmp_path)).task.image_size == 224


def test_grey_images(tmp_path):
    dataset = load_dataset(str(folder(tmp_path)), in_channels=1)
    assert dataset.train.pixels.shape == (6, 1, 32, 32)
    assert len(dataset.task.mean) == 1


def test_channel_statistics_are_those_of_numpy():
    pixels = torch.randint(256, (20, 3, 5, 5), dtype=torch.uint8)
    mean, std = channel_statistics(MemorySplit(pixels, torch.zeros(20)))
    values = pixels.numpy() / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-12)


def test_normalised_training_images_have_mean_0_and_deviation_1():
    dataset = load_dataset("digits")
    images = normalise(dataset.train.pixels, dataset.task)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_preprocess_is_what_evaluation_sees(tmp_path):
    dataset = load_dataset(str(folder(tmp_path)))
    with Image.open(tmp_path / "test" / "b" / "1.png") as image:
        expected = normalise(dataset.test.pixels[4:5], dataset.task)[0]
        assert torch.equal(preprocess(image, dataset.task), expected)


def broken_image(root: Path) -> None:
    (root / "train" / "a" / "1.png").write_bytes(b"no image")


def truncated_image(root: Path) -> None:
    path = root / "test" / "b" / "2.png"
    write_image(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:60])


def empty_class(root: Path) -> None:
    (root / "train" / "c").mkdir()


def no_images(root: Path) -> None:
    for path in (root / "train").glob("*/*"):
        path.unlink()


def no_test(root: Path) -> None:
    (root / "test").rename(root / "tests")


def new_class(root: Path) -> None:
    write_image(root / "test" / "zebra" / "0.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_image, "cannot read image {root}/train/a/1.png"),
        (truncated_image, "cannot read image {root}/test/b/2.png"),
        (empty_class, "no images of class 'c' in {root}/train"),
        (no_images, "no images in {root}/train: expected {root}/train/<class>/<image>"),
        (no_test, "{root} has no folder test/ or val/"),
        (new_class, "class 'zebra' of the test images in {root} is none of the 2 classes"),
    ],
)
def test_broken_folders(tmp_path, damage, message):
    damage(folder(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path))
    assert message.format(root=tmp_path) in str(caught.value)


def test_neither_a_data_set_nor_a_folder():
    with pytest.raises(DataError, match="no data set or folder 'cifar-10': choose cifar10, cifar100"):
        load_dataset("cifar-10")


def test_test_images_must_be_of_known_classes():
    task = Task.plain(classes=5)
    with pytest.raises(DataError, match="class '5' of the test images in digits is none of the 5 classes"):
        load_test("digits", task)


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """Files in the format of the official CIFAR-10 archive, with few images and their own MD5 sums."""
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    generator = np.random.default_rng(0)

    def write(name: str, content: object) -> tuple[str, str]:
        (base / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((base / name).read_bytes()).hexdigest()

    def batch(count: int) -> dict[str, object]:
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % 10 for i in range(count)]}

    names = [f"class{i}" for i in range(10)]
    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(10)) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(10))])
    meta_name, meta_md5 = write("batches.meta", {"label_names": names})
    meta = {"filename": meta_name, "key": "label_names", "md5": meta_md5}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path


def test_an_existing_copy_of_cifar10(cifar_files):
    dataset = load_dataset("cifar10", cifar_files)
    assert dataset.train.pixels.shape == (50, 3, 32, 32)
    assert dataset.test.pixels.shape == (10, 3, 32, 32)
    assert dataset.task.class_names[3] == "class3"
    content = pickle.loads((cifar_files / CIFAR10.base_folder / "data_batch_1").read_bytes())
    assert dataset.train.pixels[0].flatten().tolist() == content["data"][0].tolist()


def refuse_download(self):
    raise URLError("no network")


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "download", refuse_download)
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", tmp_path)
    for part in ("cannot download CIFAR10", "cifar-10-python.tar.gz", str(tmp_path), "--data digits"):
        assert part in str(caught.value)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_cifar_files_are_not_unpickled_before_their_md5_is_known(cifar_files, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setattr(CIFAR10, "download", refuse_download)
    for name in ("data_batch_3", "batches.meta"):
        path = cifar_files / CIFAR10.base_folder / name
        before = path.read_bytes()
        path.write_bytes(pickle.dumps(Evil(canary)))
        with pytest.raises(DataError, match="the present copy is incomplete or damaged"):
            load_dataset("cifar10", cifar_files)
        path.write_bytes(before)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Evil(canary)))
    assert canary.exists()


def test_a_folder_that_cannot_be():
    with pytest.raises(DataError, match="cannot download CIFAR10"):
        load_dataset("cifar10", "a\0b")


def test_images_that_do_not_fit_are_read_when_needed(tmp_path, monkeypatch):
    root = folder(tmp_path)
    whole = load_dataset(str(root))
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 100)
    streamed = load_dataset(str(root))
    assert isinstance(streamed.train, FileSplit)
    assert streamed.task == whole.task
    batches = [torch.tensor([5, 0]), torch.tensor([3])]
    for ours, expected in zip(streamed.train.batches(batches), whole.train.batches(batches), strict=True):
        assert torch.equal(ours, expected)
    chosen = torch.tensor([4, 1])
    (pixels,) = streamed.train.take(chosen).batches([torch.tensor([0, 1])])
    assert torch.equal(pixels, whole.train.take(chosen).pixels)
    assert streamed.train.take(chosen).labels.tolist() == [1, 0]
    (root / "train" / "a" / "1.png").rename(root / "train" / "a" / "1\n.png")
    broken = root / "train" / "a" / "1\n.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        list(load_dataset(str(root)).train.batches([torch.tensor([1])]))
    assert str(caught.value).startswith(f"cannot read image {broken}: ")
