"""Pictures of many kinds are converted, or refused in one line that names the file."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.data.image_files import MOST_PIXELS, read_image, without_decoder_warnings
from cnsn_cli.data.image_folder import images_below
from cnsn_cli.data.pixels import to_pixels
from cnsn_cli.errors import DataError
from tests.conftest import TINY


def saved(image: Image.Image, path: Path, kind: str = "PNG", **options: object) -> Path:
    image.save(path, kind, **options)
    return path


IDAT = struct.pack(">I", 9) + b"IDAT" + bytes(13)


def png_of(width: int, height: int) -> bytes:
    """A PNG that has little more than a header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + IDAT


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
    return image


CONVERTED = {
    "16-bit grey": (Image.fromarray(np.full((4, 4), 150 * 257, np.uint16)), "PNG", (150, 150, 150)),
    "16-bit PGM": (Image.fromarray(np.full((4, 4), 150 * 257, np.uint16)), "PPM", (150, 150, 150)),
    "16-bit TIFF": (Image.fromarray(np.full((4, 4), 150 * 257, np.uint16)), "TIFF", (150, 150, 150)),
    "palette": (palette(), "PNG", (10, 20, 30)),
    "grey": (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
    "grey and alpha": (Image.new("LA", (4, 4), (77, 9)), "PNG", (77, 77, 77)),
    "one bit": (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
    "CMYK": (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", (0, 255, 255)),
    "RGBA": (Image.new("RGBA", (4, 4), (1, 2, 3, 0)), "PNG", (1, 2, 3)),
    "WebP": (Image.new("RGB", (4, 4), (1, 2, 3)), "WEBP", (1, 2, 3)),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_pictures_that_are_converted(tmp_path, kind):
    image, encoding, expected = CONVERTED[kind]
    options = {"lossless": True} if encoding == "WEBP" else {}
    path = saved(image, tmp_path / "x.jpg", encoding, **options)  # the suffix is wrong, too
    pixels = to_pixels(read_image(str(path)), 4, 3)
    assert pixels.permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [list(expected)]
    grey = to_pixels(read_image(str(path)), 4, 1)
    assert grey.shape == (1, 4, 4)


SEEN = {  # orientation -> what people see of the pixels (rows, columns), by the table of the EXIF standard
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: stored.T[:, ::-1],
    7: lambda stored: stored.T[::-1, ::-1],
    8: lambda stored: stored.T[::-1],
}
STORED = np.kron(np.array([[0, 180, 90, 0], [0, 180, 90, 0], [250, 180, 90, 40]], np.uint8), np.ones((8, 8)))


def with_orientation(path: Path, kind: str, orientation: int, mode: str = "L") -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "TIFF": {}, "JPEG": {"quality": 100}, "WEBP": {"lossless": True}}[kind]
    return saved(Image.fromarray(STORED.astype(np.uint8)).convert(mode), path, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "L"), ("PNG", "L"), ("PNG", "P"), ("TIFF", "L"), ("WEBP", "RGB")]
)
def test_a_picture_is_read_as_people_see_it(tmp_path, kind, mode, orientation):
    path = with_orientation(tmp_path / "x.png", kind, orientation, mode)
    seen = SEEN[orientation](STORED)
    found = np.asarray(read_image(str(path)).convert("L"))
    assert found.shape == seen.shape
    assert np.abs(found - seen).max() <= 3  # JPEG loses a little
    with path.open("rb") as file, Image.open(file) as image:  # what users give to `preprocess`
        assert torch.equal(to_pixels(image, 24, 1), to_pixels(read_image(str(path)), 24, 1))


def test_a_phone_photo_is_upright_in_a_data_set(photos):
    """The left half is grey, the right half is black; orientation 6 shows the grey half on top."""
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:, :16] = 180
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(Image.fromarray(pixels), photos / "train" / "a" / "x.jpg", "JPEG", exif=exif, quality=100)
    found = load_dataset(str(photos)).train.pixels[4, 0].float()
    assert found[:16].mean() == pytest.approx(180, abs=1)
    assert found[16:].mean() == pytest.approx(0, abs=1)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0M", b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12", b"Exif\0\0no exif data"]
)
def test_broken_exif_data_change_nothing(tmp_path, exif, recwarn):
    path = saved(Image.fromarray(STORED.astype(np.uint8)), tmp_path / "x.jpg", "JPEG", exif=exif, quality=100)
    with without_decoder_warnings():
        assert np.abs(np.asarray(read_image(str(path))) - STORED).max() <= 3
    assert not recwarn.list


def truncated(path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "PNG")
    path.write_bytes(stream.getvalue()[:900])


def postscript(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n")


def truncated_bmp(path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "BMP")
    path.write_bytes(stream.getvalue()[:200])


REFUSED = {
    "truncated": (truncated, ""),
    "truncated BMP": (truncated_bmp, ""),
    "empty": (Path.touch, "it is empty"),
    "text": (
        lambda path: path.write_text("a note"),
        "it is not a valid BMP, JPEG, PNG, PPM, TIFF, WEBP file",
    ),
    "GIF": (lambda path: saved(Image.new("L", (4, 4)), path, "GIF"), "it is not a valid BMP"),
    "PostScript": (postscript, "it is not a valid BMP"),
    "floats": (lambda path: saved(Image.new("F", (4, 4)), path, "TIFF"), "its pixels are floats of unknown"),
    "32 bits": (lambda path: saved(Image.new("I", (4, 4), -5), path, "TIFF"), "its pixels are integers of"),
    "gigantic": (
        lambda path: path.write_bytes(png_of(8_000, 8_001)),
        "its 8,000 x 8,001 pixels are more than 64,000,000: shrink it",
    ),
    "of which Pillow warns": (
        lambda path: path.write_bytes(png_of(12_000, 12_000)),
        "its 12,000 x 12,000 pixels are more than 64,000,000: shrink it",
    ),
    "that Pillow refuses": (
        lambda path: path.write_bytes(png_of(2**20, 2**20)),
        "it has more than 64,000,000 pixels",
    ),
    "pipe": (os.mkfifo, "it is no ordinary file"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "it is no ordinary file"),
    "folder": (Path.mkdir, None),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                saved(
                    Image.new("RGB", (32, 32), (99 * number,) * 3), tmp_path / split / name / f"{index}.png"
                )
    return tmp_path


@pytest.mark.parametrize("kind", REFUSED)
def test_pictures_that_are_refused_by_name(photos, kind):
    make, message = REFUSED[kind]
    path = photos / "train" / "a" / "x.png"
    make(path)
    if message is None:
        assert len(load_dataset(str(photos)).train) == 8
        return
    with pytest.raises(DataError) as caught:
        load_dataset(str(photos))
    assert str(caught.value).startswith(f"cannot read image {path}: {message}")
    assert "\n" not in str(caught.value)
    dataset = load_dataset(str(photos), skip_bad=True)
    assert len(dataset.train) == 8
    assert dataset.skipped == (str(caught.value),)


def test_nothing_is_decoded_before_its_size_is_known(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(png_of(MOST_PIXELS + 1, 1))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(DataError, match="64,000,001 x 1 pixels are more than"):
        read_image(str(path))


def test_hidden_files_links_in_a_circle_and_other_files(photos):
    folder = photos / "train" / "a"
    (folder / ".hidden").mkdir()
    (folder / "more").mkdir()
    for place in (folder / ".hidden" / "x.png", folder / ".x.png", folder / "more" / "y.PNG"):
        saved(Image.new("L", (8, 8)), place)
    (folder / "more" / "circle").symlink_to(folder)
    (folder / "notes.txt").write_text("a note")
    found = [str(Path(path).relative_to(folder)) for path in images_below(str(folder)).paths]
    assert found == ["0.png", "1.png", "2.png", "3.png", "more/y.PNG"]


def test_skipping_keeps_labels_and_order(photos):
    saved(Image.new("RGB", (32, 32), (5, 5, 5)), photos / "train" / "a" / "9.png")
    (photos / "train" / "a" / "0.png").write_bytes(b"")
    (photos / "test" / "b" / "3.png").write_bytes(b"")
    dataset = load_dataset(str(photos), skip_bad=True)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.train.pixels[:, 0, 0, 0].tolist() == [0, 0, 0, 5] + [99] * 4
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 3
    assert [problem.split(":")[0].split("/")[-3:] for problem in dataset.skipped] == [
        ["train", "a", "0.png"], ["test", "b", "3.png"],
    ]  # fmt: skip


def test_a_class_of_which_nothing_can_be_read(photos):
    for path in (photos / "train" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of class 'b' in .* can be read"):
        load_dataset(str(photos), skip_bad=True)
    for path in (photos / "train" / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 8 images can be read; the first: .*a/0.png: it is empty"):
        load_dataset(str(photos), skip_bad=True)


def test_commands_count_and_list_what_they_skip(cnsn, photos):
    (photos / "train" / "a" / "\x1b[31m.png").write_bytes(b"")
    (photos / "test" / "b" / "0.png").write_text("a note")
    words = ("train", "--arch", TINY, "--exits", "1", "--data", photos, "--recipe", "quick", "--epochs", 1)
    words += ("--batch-size", 4, "--out", photos / "run")
    assert "cannot read image" in cnsn(*words).err
    trained = cnsn(*words, "--skip-bad")
    assert trained.code == 0, trained.err
    assert trained.err.splitlines()[:3] == [
        "images skipped: 2",
        f"  cannot read image {photos}/train/a/\\x1b[31m.png: it is empty",
        f"  cannot read image {photos}/test/b/0.png: it is not a valid BMP, JPEG, PNG, PPM, TIFF, WEBP file",
    ]
    assert "training on 8 images" in trained.err
    # A finished run reads no data.
    further = ("train", "--resume", photos / "run", "--epochs", 2, "--override")
    assert "images skipped: 2" in cnsn(*further).err
    path = photos / "run" / "best.safetensors"
    assert "cannot read image" in cnsn("eval", path).err
    evaluated = cnsn("eval", path, "--skip-bad")
    assert evaluated.err.splitlines()[0] == "images skipped: 1"
    assert "on 7 test images" in evaluated.out


def test_warnings_of_decoders_do_not_reach_the_user(photos, recwarn):
    """A palette with transparency in bytes makes Pillow warn."""
    image = palette()
    path = saved(image, photos / "train" / "a" / "x.png", transparency=bytes([0, 128] + [255] * 254))
    dataset = load_dataset(str(photos))
    assert dataset.train.pixels[4, :, 0, 0].tolist() == [10, 20, 30]
    assert not recwarn.list
    assert path.exists()
    assert torch.is_tensor(dataset.train.pixels)
