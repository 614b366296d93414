"""Photos are changed one by one, and what happens to each follows from seed, epoch and number alone."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from cnsn_cli.data import sources, split
from cnsn_cli.data.datasets import Dataset, load_dataset
from cnsn_cli.data.split import FileSplit, MemorySplit
from cnsn_cli.errors import RecipeError
from cnsn_cli.training import run as runs
from cnsn_cli.training import setup
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.photos import RandomPart, changed, drawing
from cnsn_cli.training.recipe import Recipe, load_recipe
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.step import TrainingStep
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY, built
from tests.training.test_resume import DROPOUT, Stop, assert_same_run

SIZES = [(60, 40), (40, 60), (50, 50)]
ALL = {"crop": "resized", "auto_augment": "trivial", "color_jitter": 0.4, "erase": 0.5, "flip": "random"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes that differ in brightness, of pictures of three sizes; colours change along both axes."""
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 24), ("test", 8)):
        for name, low in (("bright", 150), ("dark", 20)):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                picture(*SIZES[index % 3], low, index).save(root / part / name / f"{index:02}.png")
    return root


def picture(width: int, height: int, low: int, blue: int) -> Image.Image:
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = low + np.linspace(0, 100, width)
    pixels[..., 1] = low + np.linspace(0, 100, height)[:, None]
    pixels[..., 2] = blue
    return Image.fromarray(pixels)


def recipe(**changes: object) -> Recipe:
    settings = {"epochs": 2, "batch_size": 8, "lr": 0.02, "seed": 3, "flip": "none", "crop_padding": 0}
    return load_recipe("quick", settings | changes)


def pixels(dataset: Dataset, epoch: int, numbers: list[list[int]], **changes: object) -> torch.Tensor:
    """The pixels of samples, batch by batch, as they are shown in an epoch."""
    train = changed(dataset.train, recipe(**changes), dataset.task, epoch)
    return torch.cat(list(train.batches([torch.tensor(batch) for batch in numbers])))


@pytest.fixture(scope="module")
def dataset(photos) -> Dataset:
    return load_dataset(str(photos), image_size=32, keep=False)


def torchvision_draws(size, scale, ratio) -> list[tuple[int, int, int, int]]:
    torch.manual_seed(1)
    transform, image = v2.RandomResizedCrop(32, scale, ratio), torch.empty(3, size[1], size[0])
    found = (transform.make_params([image]) for _ in range(10_000))
    return [(p["left"], p["top"], p["width"], p["height"]) for p in found]


def our_draws(size, scale, ratio) -> list[tuple[int, int, int, int]]:
    boxes = []
    for number in range(10_000):
        part = RandomPart(32, 3, scale, ratio)
        with drawing(7, 1 + number % 3, number):
            part.aim(size)
        left, top, right, lower = part.box
        boxes.append((left, top, right - left, lower - top))
    return boxes


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((2048, 1536), (0.08, 1.0), (0.75, 1.3333)),
        ((900, 1600), (0.2, 0.9), (0.4, 1.0)),
        ((3000, 200), (0.08, 1.0), (0.75, 1.3333)),  # most draws do not fit
    ],
)
def test_parts_have_the_distribution_of_torchvision(size, scale, ratio):
    columns = []
    for boxes in (torchvision_draws(size, scale, ratio), our_draws(size, scale, ratio)):
        left, top, width, height = np.array(boxes, float).T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (left + width <= size[0]).all()
        assert (top + height <= size[1]).all()
        free = [size[0] - width, size[1] - height]
        places = [start[rest > 0] / rest[rest > 0] for start, rest in zip((left, top), free, strict=True)]
        columns.append([width * height, np.log(width / height), *places])
    for theirs, ours in zip(*columns, strict=True):
        assert ks_2samp(theirs, ours).pvalue > 0.01


def test_a_part_is_what_torchvision_cuts_with_the_same_draws(dataset, photos):
    found = pixels(dataset, 2, [list(range(24))], crop="resized")
    for number in range(24):
        path = photos / "train" / "bright" / f"{number:02}.png"
        (seed,) = np.random.SeedSequence((3, 2, number)).generate_state(1)
        torch.manual_seed(int(seed))
        expected = v2.RandomResizedCrop(32, ratio=(0.75, 1.3333))(Image.open(path))
        difference = found[number].permute(1, 2, 0).float() - torch.tensor(np.array(expected)).float()
        assert difference.abs().max() <= 4  # torchvision cuts first: its edges know no neighbours
        assert difference.abs().mean() < 0.5


def test_what_happens_depends_on_seed_epoch_and_number_alone(dataset):
    together = pixels(dataset, 1, [[0, 1, 2], [30, 31]], **ALL)
    assert torch.equal(pixels(dataset, 1, [[31], [2, 30, 0, 1]], **ALL), together[[4, 2, 3, 0, 1]])
    assert not torch.equal(pixels(dataset, 2, [[0, 1, 2], [30, 31]], **ALL), together)
    assert not torch.equal(pixels(dataset, 1, [[0, 1, 2], [30, 31]], **ALL, seed=4), together)
    fewer = Dataset(dataset.train.take(torch.tensor([30, 2])), dataset.test, dataset.task)
    assert torch.equal(pixels(fewer, 1, [[0, 1]], **ALL), together[[3, 2]])


@pytest.mark.parametrize("name", ["trivial", "rand"])
def test_equal_photos_in_a_batch_are_changed_differently(dataset, name):
    """A transform of torchvision draws once for all images that it gets."""
    same = [list(range(0, 24, 3))]
    found, plain = pixels(dataset, 1, same, auto_augment=name), pixels(dataset, 1, same)
    changes = (found[:, :2].float() - plain[:, :2].float()).flatten(1)  # their red and green are the same
    assert len({tuple(row.tolist()) for row in changes}) > 4


def test_colours_change_within_their_limits(dataset):
    """Grey 100 has no contrast and no saturation: brightness alone multiplies it by 0.6 to 1.4."""

    def grey(number: int, view: object) -> Image.Image:
        return Image.new("RGB", (32, 32), (100, 100, 100))

    source = FileSplit(grey, None, torch.arange(400), torch.zeros(400))
    split_ = changed(source, recipe(color_jitter=0.4), dataset.task, 1)
    (found,) = split_.batches([torch.arange(400)])
    means = found.float().mean((1, 2, 3))
    assert 60 <= means.min() < 64
    assert 136 < means.max() <= 140


def test_erased_rectangles_have_the_mean_colour(dataset):
    def black(number: int, view: object) -> Image.Image:
        return Image.new("RGB", (32, 32))

    source = FileSplit(black, None, torch.arange(1000), torch.zeros(1000))
    (found,) = changed(source, recipe(erase=0.25), dataset.task, 1).batches([torch.arange(1000)])
    erased = found.permute(0, 2, 3, 1).amax(3) > 0
    colour = torch.tensor([round(255 * value) for value in dataset.task.mean])
    assert (found.permute(0, 2, 3, 1)[erased] == colour).all()
    shares = erased.float().mean((1, 2))
    assert abs((shares > 0).sum() - 250) < 3 * math.sqrt(1000 * 0.25 * 0.75)
    assert 0.01 < shares[shares > 0].min() < 0.03  # 0.02 to 0.33, in whole pixels
    assert 0.28 < shares.max() < 0.34


def test_grey_photos(photos):
    dataset = load_dataset(str(photos), image_size=32, in_channels=1, keep=False)
    for name in ("trivial", "rand"):
        assert pixels(dataset, 1, [list(range(48))], **{**ALL, "auto_augment": name}).shape == (48, 1, 32, 32)


def workers(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(split, "MOST_WORKERS", count)
    monkeypatch.setattr(split, "_cores", lambda: 2)


def test_runs_with_any_number_of_workers_and_a_stop_are_equal(distribution, photos, tmp_path, monkeypatch):
    """The network has dropout, whose random numbers the photos must not touch."""
    distribution("other", {"other": DROPOUT}, {"dropout": "other:dropout"})
    chosen, words = recipe(**ALL, val_split=0.25, ema=0.9), {"image_size": 32, "save_every": "1"}
    for count in (0, 1, 2):
        workers(monkeypatch, count)
        train("dropout", (1,), str(photos), chosen, tmp_path / str(count), **words)
    assert_same_run(tmp_path / "1", tmp_path / "0")
    assert_same_run(tmp_path / "2", tmp_path / "0")

    def stop(event: object) -> None:
        if isinstance(event, runs.Step) and (event.epoch, event.step) == (2, 2):
            raise Stop

    with pytest.raises(Stop):
        train("dropout", (1,), str(photos), chosen, tmp_path / "cut", watch=stop, **words)
    workers(monkeypatch, 1)
    steps: list[tuple[int, int]] = []
    resume(tmp_path / "cut", watch=lambda e: steps.append((e.epoch, e.step)) if hasattr(e, "step") else None)
    assert steps[0][0] == 2  # it went on in the middle
    assert steps[0][1] > 1
    assert_same_run(tmp_path / "cut", tmp_path / "0")


def test_training_photos_stay_in_their_files(photos, tmp_path, monkeypatch):
    prepared = []
    original = setup.prepare
    monkeypatch.setattr(runs, "prepare", lambda *args: prepared.append(original(*args)) or prepared[-1])
    train(TINY, (1,), str(photos), recipe(epochs=1, erase=0.5), tmp_path / "run", image_size=32)
    dataset, plain = prepared[0].dataset, load_dataset(str(photos), image_size=32)
    assert isinstance(dataset.train, FileSplit)
    assert isinstance(dataset.test, MemorySplit)
    assert dataset.task == plain.task  # mean and deviation are those of whole photos
    assert torch.equal(torch.cat(list(dataset.train.in_order(10))), plain.train.pixels)


def test_training_takes_the_photos_of_each_epoch(dataset, monkeypatch):
    """What steps get is what `shown` makes of the samples of the plan."""
    steps: list[torch.Tensor] = []
    monkeypatch.setattr(TrainingStep, "set", lambda step, indices, taken, *rest: steps.append(taken))
    chosen, network = recipe(**ALL), built(TINY, (1,), dataset.task)
    trainer = Trainer(network, dataset.train, dataset.test, chosen)
    list(islice(trainer.run(), 3))
    order = plan_epoch(len(dataset.train), chosen, 1, torch.device("cpu")).order
    expected = pixels(dataset, 1, [order[:24].tolist()], **ALL)
    assert torch.equal(torch.cat(steps), expected)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--crop", "resized"), "crop = resized"),
        (("--auto-augment", "rand", "--erase", 0.25), "auto_augment = rand, erase = 0.25"),
        (("--color-jitter", 0.4), "color_jitter = 0.4"),
    ],
)
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_arrays_refuse_them_before_anything_is_read(cnsn, monkeypatch, tmp_path, data, words, named):
    monkeypatch.setattr(sources, "_digits", None)
    monkeypatch.setattr(sources, "_cifar", None)
    result = cnsn("train", "--arch", TINY, "--exits", 1, "--data", data, *words, "--out", tmp_path / "run")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(
        f"cnsn: {named} changes photos while they are read from files, and {data} is"
    )
    assert "give --data a folder of images" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale": (0.5, 0.2)}, "crop_scale = 0.5,0.2: give the smaller number first"),
        ({"crop_ratio": (2, 1)}, "crop_ratio = 2,1: give the smaller number first"),
        ({"crop_scale": (0, 1)}, r"crop_scale.0 = 0: input should be greater than 0"),
        ({"crop_scale": ("0.5",)}, r"crop_scale"),
        ({"crop_ratio": (math.nan, 1)}, r"crop_ratio.0"),
        ({"erase": 1.5}, "erase = 1.5: input should be less than or equal to 1"),
        ({"color_jitter": -1}, "color_jitter = -1: input should be greater than or equal to 0"),
        ({"auto_augment": "best"}, "auto_augment = 'best': input should be 'none', 'trivial' or 'rand'"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_a_part_is_not_padded_and_cropped_again():
    images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    for crop, same in (("resized", True), ("padded", False)):
        plan = plan_epoch(10, recipe(crop=crop, crop_padding=4), 1, torch.device("cpu"))
        assert torch.equal(plan.augment(images, torch.arange(10)), images) is same
