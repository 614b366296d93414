"""JPEGs are decoded as far as it is needed, and show what a full decode and the same resize show."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cnsn_cli.data.datasets import load_dataset, open_images
from cnsn_cli.data.image_files import read_image
from cnsn_cli.data.pixels import preprocess, to_pixels
from cnsn_cli.data.views import Box, Middle, Size, as_tensor, pixels_of, seen
from cnsn_cli.errors import DataError
from cnsn_cli.training.photos import RandomPart, drawing

LARGEST_MEAN = 2  # of 255
END = b"\xff\xd9"  # of a JPEG


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with the spectrum of photos: amplitudes fall with the frequency."""
    generator = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(down, across), 1 / width) ** 1.3
    waves = generator.normal(size=(3, height, width // 2 + 1, 2)) @ np.array([1, 1j])
    layers = np.fft.irfft2(waves * falling, s=(height, width))
    layers = 120 + 45 * layers / layers.std((1, 2), keepdims=True)
    return Image.fromarray(layers.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def saved(path: Path, size: Size, orientation: int = 1, mode: str = "RGB", **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    textured(*size).convert(mode).save(path, "JPEG", quality=92, exif=exif, **options)
    return path


def whole(path: Path) -> Image.Image:
    """The upright picture, decoded by Pillow as it is."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def difference(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(816, 608), (815, 601), (603, 809)])
@pytest.mark.parametrize(("side", "share"), [(64, 1.0), (64, 0.875), (32, 1.0), (200, 1.0)])
def test_the_middle(tmp_path, orientation, size, side, share):
    path = saved(tmp_path / "x.jpg", size, orientation)
    found = read_image(str(path), Middle(side, 3, share))
    expected = ImageOps.fit(whole(path), (side, side), Image.Resampling.BILINEAR, (1 - share) / 2)
    assert difference(found, expected) <= LARGEST_MEAN


@pytest.mark.parametrize("orientation", range(1, 9))
def test_random_parts(tmp_path, orientation):
    path = saved(tmp_path / "x.jpg", (1615, 1203), orientation)
    image, scales = whole(path), set()
    for number in range(12):
        part = RandomPart(96, 3, (0.08, 1.0), (0.75, 1.3333))
        with drawing(0, 1, number):
            found = read_image(str(path), part)
        assert difference(found, image.resize((96, 96), Image.Resampling.BILINEAR, part.box)) <= LARGEST_MEAN
        scales.add(min((part.box[2] - part.box[0]) // 96, (part.box[3] - part.box[1]) // 96))
    assert len(scales) > 2


class AllRows(RandomPart):
    """The same part, of a picture that is decoded to its end."""

    def aim(self, size: Size) -> tuple[Size, Box]:
        least, _ = super().aim(size)
        return least, (0, 0, *size)


def random_part(path: Path, number: int, side: int, kind: type[RandomPart] = RandomPart) -> np.ndarray:
    with drawing(0, 1, number):
        return np.asarray(read_image(str(path), kind(side, 3, (0.08, 1.0), (0.75, 1.3333))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}], ids=str)
def test_rows_after_a_part_change_nothing(tmp_path, orientation, options):
    path = saved(tmp_path / "x.jpg", (815, 601), orientation, **options)
    for number, side in product(range(4), (8, 96, 700)):
        found, expected = random_part(path, number, side), random_part(path, number, side, AllRows)
        assert np.array_equal(found, expected)


class Upper(Middle):
    """The upper half of a picture."""

    def aim(self, size: Size) -> tuple[Size, Box]:
        return (64, 64), (0, 0, size[0], size[1] // 2)

    def cut(self, image: Image.Image, whole: Box) -> Image.Image:
        return image.crop((0, 0, image.width, image.height // 2))


def test_rows_after_a_part_are_not_read(tmp_path):
    """A file without its last third, that ends as it should, shows the upper half of the picture."""
    path = saved(tmp_path / "x.jpg", (815, 601))
    expected = np.asarray(read_image(str(path), Upper(64, 3)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3] + END)
    assert np.array_equal(read_image(str(path), Upper(64, 3)), expected)
    with pytest.raises(DataError, match="lacks some of its rows"):
        read_image(str(path), Middle(64, 3))


@pytest.mark.parametrize(
    ("share", "end"), [(0.1, END), (0.3, END), (0.3, b""), (0.9, b""), (0.99, b""), (0.9, b"\0\0")]
)
def test_a_part_that_may_not_be_in_the_file_is_refused(tmp_path, share, end):
    """So is each part of a file that was cut short."""
    path = saved(tmp_path / "x.jpg", (815, 601))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)] + end)
    with pytest.raises(DataError, match="lacks some of its rows" if end == END else "truncated"):
        read_image(str(path), Upper(64, 3))


def test_a_file_that_cannot_be_decoded_is_refused(tmp_path):
    """Its tables of quantisation have become comments."""
    path = saved(tmp_path / "x.jpg", (815, 601))
    path.write_bytes(path.read_bytes().replace(b"\xff\xdb", b"\xff\xfe"))
    with pytest.raises(DataError, match="broken data stream"):
        read_image(str(path), Upper(64, 3))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_parts_of_one_colour(tmp_path, value):
    """Rows in black and in grey look like rows that were not decoded."""
    Image.new("RGB", (815, 601), (value,) * 3).save(tmp_path / "x.jpg")
    assert (np.asarray(read_image(str(tmp_path / "x.jpg"), Upper(64, 3))) == value).all()


@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})])
def test_other_kinds_of_jpeg(tmp_path, mode, options):
    path = saved(tmp_path / "x.jpg", (815, 601), 6, mode, **options)
    for channels in (1, 3):
        expected = seen(Middle(64, channels), whole(path))
        assert difference(read_image(str(path), Middle(64, channels)), expected) <= LARGEST_MEAN


class Watched(Middle):
    """A middle that notes at which size its picture was decoded."""

    decoded: Size

    def cut(self, image: Image.Image, whole: Box) -> Image.Image:
        object.__setattr__(self, "decoded", image.size)
        return super().cut(image, whole)


@pytest.mark.parametrize(
    ("side", "share", "size"),
    [
        (48, 1.0, (102, 76)),
        (60, 1.0, (102, 76)),  # 60 x 1.25 = 75, and 608 / 8 = 76
        (61, 1.0, (204, 152)),
        (52, 0.8, (204, 152)),  # 52 / 0.8 x 1.25 = 81.25
        (200, 1.0, (408, 304)),
        (243, 1.0, (408, 304)),
        (244, 1.0, (816, 608)),
        (900, 1.0, (816, 608)),
    ],
)
def test_the_smallest_scale_with_pixels_enough(tmp_path, side, share, size):
    for orientation, expected in ((1, size), (6, size[::-1])):
        view = Watched(side, 3, share)
        read_image(str(saved(tmp_path / "x.jpg", (816, 608), orientation)), view)
        assert view.decoded == expected


def test_training_evaluation_and_prediction_see_the_same(tmp_path):
    for split in ("train", "test"):
        for number, name in enumerate("ab"):
            (tmp_path / split / name).mkdir(parents=True)
            saved(tmp_path / split / name / "0.jpg", (815, 601), 6 * number or 1)
    kept = load_dataset(str(tmp_path), image_size=64)
    streamed = load_dataset(str(tmp_path), image_size=64, keep=False)
    files = sorted((tmp_path / "test").rglob("*.jpg"))
    expected = torch.stack([as_tensor(read_image(str(path), Middle(64, 3))) for path in files])
    for split in (kept.train, kept.test, streamed.train, open_images(files, kept.task)):
        assert torch.equal(next(split.in_order(10)), expected)


def test_a_picture_of_the_user_stays_whole(tmp_path):
    path = saved(tmp_path / "x.jpg", (815, 601))
    task = load_dataset("digits").task
    with Image.open(path) as image:
        preprocess(image, task)
        assert image.size == (815, 601)
        found = pixels_of(Middle(64, 3), lambda number, view: read_image(str(path), view), 0)
        assert (to_pixels(image, 64, 3).float() - found.float()).abs().mean() <= LARGEST_MEAN
