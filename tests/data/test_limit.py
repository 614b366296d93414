"""Some images of each split, for a first look."""

import pytest
import torch

from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.errors import TrainingError
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.started import Started
from tests.commands.test_cli import one_line
from tests.conftest import TINY
from tests.data.test_datasets import write_image
from tests.training.test_resume import Stop, stop_at_step


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Three classes of 90, 9 and 1 training images, and of 5 test images. Image i has the grey value i."""
    root = tmp_path_factory.mktemp("uneven")
    for name, count in (("a", 90), ("b", 9), ("c", 1)):
        for split, images in (("train", count), ("test", 5)):
            for index in range(images):
                write_image(root / split / name / f"{index:02}.png", index, (16, 16))
    return root


def test_each_class_keeps_its_share_at_even_distances(uneven):
    dataset = load_dataset(str(uneven), limit_images=10)
    assert dataset.train.labels.tolist() == [0] * 8 + [1, 2]
    assert dataset.train.pixels[:, 0, 0, 0].tolist() == [0, 11, 22, 33, 45, 56, 67, 78, 0, 0]
    assert dataset.test.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.test.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 3, 0, 1, 3]
    assert dataset.task.class_names == ("a", "b", "c")
    assert dataset.task.mean[0] * 255 == pytest.approx(312 / 10)


def test_the_smallest_limit_is_the_number_of_classes(cnsn, uneven, tmp_path):
    assert load_dataset(str(uneven), limit_images=3).train.labels.tolist() == [0, 1, 2]
    words = ("train", "--arch", TINY, "--exits", "1", "--data", uneven, "--out", tmp_path / "run")
    result = cnsn(*words, "--limit-images", 2)
    assert result.code == 1
    assert one_line(result) == (
        f"--limit-images 2 leaves no image of some of the 3 classes of {uneven}: give at least 3"
    )
    assert cnsn(*words, "--limit-images", 0).code == 2


def test_a_limit_that_is_too_large_changes_nothing(uneven):
    whole, limited = load_dataset(str(uneven)), load_dataset(str(uneven), limit_images=101)
    assert torch.equal(limited.train.pixels, whole.train.pixels)
    assert limited.task == whole.task


def test_data_without_files_have_a_limit_too():
    dataset = load_dataset("digits", limit_images=100)
    assert (len(dataset.train), len(dataset.test)) == (100, 100)
    assert dataset.train.labels.bincount().min() >= 9


def test_bad_images_of_the_limit_are_left_out(uneven, tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            for index in range(4):
                write_image(tmp_path / split / name / f"{index}.png")
    (tmp_path / "train" / "a" / "2.png").write_text("no picture")
    (tmp_path / "train" / "a" / "3.png").write_text("no picture, and not of the limit")
    dataset = load_dataset(str(tmp_path), skip_bad=True, limit_images=4)
    assert (len(dataset.train), len(dataset.test)) == (3, 4)
    assert len(dataset.skipped) == 1


def test_a_resumed_run_keeps_the_limit(cnsn, image_folder, tmp_path, quick):
    started = []

    def watch(event):
        if isinstance(event, Started):
            started.append(event)
        stop(event)

    stop, recipe = stop_at_step(1), quick.model_copy(update={"epochs": 2})
    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), recipe, tmp_path, limit_images=18, watch=watch, save_every="1")
    assert read_state(tmp_path / "state.safetensors").request.limit_images == 18
    for limit in (16, None):
        with pytest.raises(TrainingError, match=f"cannot go on with limit_images 18 -> {limit}: start"):
            resume(tmp_path, {"limit_images": limit}, override=True)
    result = cnsn("train", "--resume", tmp_path)
    assert result.code == 0, result.err
    assert "training on 18 images (--limit-images 18) on cpu" in result.err
    assert "chosen on 16 test images" in result.err
    assert (started[0].train_images, started[0].steps_per_epoch, started[0].limit_images) == (18, 2, 18)
