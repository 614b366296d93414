"""Pictures that lack rows are refused, whatever their format; whole ones are not, however black."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from cnsn_cli.data.image_files import read_image
from cnsn_cli.data.views import Middle
from cnsn_cli.errors import DataError

LACKS = "it lacks some of its rows"
SIDE = 64
NOISE = np.random.default_rng(0).integers(1, 256, (SIDE, SIDE, 4), dtype=np.uint8)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int, colour: int = 2, bits: int = 8, value: int | None = None) -> bytes:
    """A PNG of SIDE x SIDE pixels whose data properly end after some rows: of noise, or of one value."""
    width = SIDE * CHANNELS[colour] * bits // 8
    lines = [bytes([value]) * width if value is not None else NOISE.tobytes()[:width] for _ in range(rows)]
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data + chunk(b"IEND", b"")


def interlaced(passes: int) -> bytes:
    """A PNG, grey 9 everywhere, of which the first of the seven passes of Adam7 are there."""
    starts_and_steps = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    lines = b""
    for left, top, across, down in starts_and_steps[:passes]:
        columns, rows = len(range(left, SIDE, across)), len(range(top, SIDE, down))
        lines += (b"\0" + b"\x09" * columns) * rows
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def encoded(kind: str, pixels: np.ndarray = NOISE[..., :3], **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def tiff_with(strips: int) -> bytes:
    """An uncompressed TIFF of eight strips that lists only some of them."""
    data = bytearray(encoded("TIFF", tiffinfo={278: 8}, strip_size=SIDE * 3 * 8))
    (start,) = struct.unpack("<I", data[4:8])
    (entries,) = struct.unpack("<H", data[start : start + 2])
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack("<HHII", data[place : place + 12])
        if tag in (273, 279):  # where the strips are, and how long
            assert count == 8
            data[place : place + 12] = struct.pack("<HHII", tag, kind, strips, value)
    return bytes(data)


def cut_jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG of which a half is gone, with the mark of its end put behind the rest."""
    data = encoded("JPEG", pixels)
    return data[: len(data) // 2] + b"\xff\xd9"


SHORT = {
    "PNG": png(32),
    "PNG that lacks one row": png(63),
    "PNG, grey": png(40, colour=0),
    "PNG, one bit": png(40, colour=0, bits=1),
    "PNG, 16 bits": png(40, colour=0, bits=16),
    "PNG, palette": png(40, colour=3),
    "PNG, grey and alpha": png(40, colour=4),
    "PNG, RGB and alpha": png(40, colour=6),
    "PNG, interlaced": interlaced(6),
    "PNG, interlaced, coarse": interlaced(2),
    "TIFF": tiff_with(4),
    "TIFF that lacks one strip": tiff_with(7),
    "JPEG": cut_jpeg(NOISE[..., :3]),
    "JPEG, grey": cut_jpeg(NOISE[..., 0]),
}
WHOLE = {
    "PNG": png(64),
    **{f"PNG of {v}, colour type {kind}": png(64, kind, 8, v) for kind in CHANNELS for v in (0, 255)},
    "PNG, black, one bit": png(64, 0, 1, 0),
    "PNG, black, 16 bits": png(64, 0, 16, 0),
    "PNG, interlaced": interlaced(7),
    "TIFF": tiff_with(8),
    "TIFF, LZW": encoded("TIFF", compression="tiff_lzw"),
    **{
        f"JPEG of {value}, {options}": encoded("JPEG", np.full((SIDE, SIDE, 3), value, np.uint8), **options)
        for value in (0, 128, 255)
        for options in ({}, {"progressive": True}, {"subsampling": 0, "restart_marker_rows": 1})
    },
    "JPEG of 128, grey, and more": encoded("JPEG", np.full((SIDE, SIDE), 128, np.uint8)) + b"more\xff\xd9",
}  # fmt: skip


@pytest.mark.parametrize("kind", SHORT)
def test_a_picture_without_all_of_its_rows_is_refused(tmp_path, kind):
    path = tmp_path / "x.png"
    path.write_bytes(SHORT[kind])
    with Image.open(path) as image:
        image.load()  # Pillow has nothing against it
    with pytest.raises(DataError, match=f"^cannot read image {path}: {LACKS}"):
        read_image(str(path))


@pytest.mark.parametrize("kind", [kind for kind in SHORT if kind.startswith("JPEG")])
@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_a_smaller_picture_without_all_of_its_rows_is_refused(tmp_path, kind, side):
    """Decoded at 1/8, 1/4, 1/2 and 1 of its size."""
    path = tmp_path / "x.jpg"
    path.write_bytes(SHORT[kind])
    with pytest.raises(DataError, match=f"^cannot read image {path}: {LACKS}"):
        read_image(str(path), Middle(side, 3))


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_a_whole_picture_is_read_smaller(tmp_path, kind, side):
    path = tmp_path / "x.png"
    path.write_bytes(WHOLE[kind])
    assert read_image(str(path), Middle(side, 3)).size == (side, side)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_picture_is_read(tmp_path, kind):
    path = tmp_path / "x.png"
    path.write_bytes(WHOLE[kind])
    assert read_image(str(path)).size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {}), ("WEBP", {"lossless": True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind, options, share):
    data = encoded(kind, **options)
    (tmp_path / "x.png").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match="cannot read image"):
        read_image(str(tmp_path / "x.png"))


def long_png(width: int, height: int) -> bytes:
    """A whole PNG of black pixels."""
    press = zlib.compressobj(1)
    rows = b"".join(press.compress((b"\0" * (1 + width)) * 100) for _ in range(height // 100)) + press.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_long_thin_picture_is_refused_before_it_takes_memory(tmp_path):
    """Pillow takes 2 GB for it."""
    path = tmp_path / "x.png"
    path.write_bytes(long_png(1, 64_000_000))
    code = (
        "import sys, resource; from cnsn_cli.data.image_files import read_image\n"
        "from PIL import Image; Image.init()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(sys.argv[1])\n"
        "except Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    message, kilobytes = done.stdout.splitlines()
    side = "its 1 x 64,000,000 pixels have a side of more than 65,535: cut it into pieces"
    assert message == f"cannot read image {path}: {side}"
    assert int(kilobytes) < 100_000


@pytest.mark.parametrize(("width", "height"), [(1, 65_500), (65_535, 900)])
def test_long_pictures_within_the_limits_are_read(tmp_path, width, height):
    (tmp_path / "x.png").write_bytes(long_png(width, height))
    assert read_image(str(tmp_path / "x.png")).size == (width, height)
