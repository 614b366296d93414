"""Files that are no sound checkpoints are refused in one line."""

import struct

import pytest

from cnsn_cli.errors import ArchitectureError, CheckpointError, CnsnError
from cnsn_cli.files.checkpoint import load
from tests.conftest import rewrite


def first_tensor(content: dict) -> dict:
    return content["units.0.0.weight"]


BROKEN = {
    "not ours": (lambda c, m: c.pop("__metadata__"), "was not written by cnsn"),
    "other version": (
        lambda c, m: m.update(format=9),
        "has format 9, this version reads formats 1 and 2: update",
    ),
    "no models": (lambda c, m: m.update(models=[]), "has broken metadata: models:"),
    "missing field": (lambda c, m: m.pop("arch"), "has broken metadata: arch: Field required"),
    "wrong type": (lambda c, m: m.update(arch=3), "arch: Input should be a valid string"),
    "no pixels": (lambda c, m: m["task"].update(image_size=0), "not of 1 to 1024 pixels"),
    "no deviation": (lambda c, m: m["task"].update(std=[0, 1, 1]), "mean and std do not fit"),
    "nan": (lambda c, m: m["task"].update(mean=[float("nan"), 0, 0]), "has broken metadata: task.mean"),
    "huge images": (lambda c, m: m["task"].update(image_size=20_000), "not of 1 to 1024 pixels"),
    "huge count": (lambda c, m: m["models"][0].update(macs=10**400), "has broken metadata: models.0.macs"),
    "empty": (lambda c, m: m.clear(), "has format None"),
    "odd place": (lambda c, m: m["models"][1].update(first_unit=3), "places submodel0 where"),
    "no dtype": (lambda c, m: c.update(a={}), "'a' has an impossible description"),
    "half a tensor": (lambda c, m: first_tensor(c).update(dtype="F16", shape=[4, 3, 3, 6]), "has shape"),
    "other dtype": (
        lambda c, m: first_tensor(c).update(dtype="I32"),
        "has dtype I32, its architecture wants F32",
    ),
    "negative": (lambda c, m: first_tensor(c).update(shape=[-4, 3, -3, 3]), "has an impossible description"),
    "odd metadata": (lambda c, m: c["__metadata__"].update(x=3), "its metadata are no strings"),
    "one too many": (
        lambda c, m: c.update(x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        "not know",
    ),
    "odd names": (lambda c, m: m["models"][1].update(name="x"), "a network holds base, submodel0"),
    "overlap": (lambda c, m: first_tensor(c).update(data_offsets=[0, 432]), "is broken or truncated"),
    "wrong size": (lambda c, m: first_tensor(c).update(shape=[4, 3, 3, 4]), "not those of its shape"),
    "odd dtype": (lambda c, m: first_tensor(c).update(dtype="F33"), "has an impossible description"),
    "other shape": (
        lambda c, m: first_tensor(c).update(shape=[3, 4, 3, 3]),
        "architecture wants (4, 3, 3, 3)",
    ),
    "other tensor": (lambda c, m: c.update(x=c.pop("head.1.bias")), "lacks tensor 'head.1.bias'"),
    "other exits": (lambda c, m: m["models"][1].update(drops=2), "its architecture wants (8,)"),
    "illegal exits": (lambda c, m: m["models"][1].update(drops=99), "exits must ascend"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(checkpoint, tmp_path, name):
    change, message = BROKEN[name]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    rewrite(path, change)
    with pytest.raises(CnsnError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_architecture_that_is_not_installed(checkpoint, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    rewrite(path, lambda c, m: m.update(arch="wavenet", provider="waves 2.0"))
    needed = "unknown architecture 'wavenet': it needs waves 2.0, which is not installed"
    with pytest.raises(ArchitectureError, match=f"made with waves 2.0: {needed}"):
        load(path)


def test_an_architecture_of_another_version_of_its_package(checkpoint, tmp_path, distribution):
    path = tmp_path / "other.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    rewrite(path, lambda c, m: m.update(arch="wavenet", provider="waves 2.0"))
    distribution("waves", {}, {})
    with pytest.raises(ArchitectureError, match=r"it needs waves 2\.0, and waves 1\.0 is installed"):
        load(path)
    for odd in ("", " ", "waves", "../waves 2.0"):
        rewrite(path, lambda c, m, odd=odd: m.update(provider=odd))
        with pytest.raises(ArchitectureError, match="unknown architecture 'wavenet'"):
            load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no safetensors file: it has 0 bytes"),
        (
            b"PK\x03\x04" + bytes(100),
            "is no safetensors file: it is a zip, such as torch writes",
        ),
        (struct.pack("<Q", 2) + b"[]", "is broken or truncated"),
        (struct.pack("<Q", 8) + b"not json", "is broken or truncated"),
        (struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "is broken or truncated"),
        (struct.pack("<Q", 2) + b"{}" + b"more", "its header lists 0"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated_files_are_refused(checkpoint, tmp_path, share):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[: int(checkpoint.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"truncated|no safetensors file"):
        load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing.safetensors: No such file"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match=r"is a folder: name a file, such as best.safetensors"):
        load(tmp_path)


def test_a_name_that_stands_twice_is_refused(checkpoint, tmp_path):
    path = tmp_path / "twice.safetensors"
    data = checkpoint.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    raw = b'{"head.1.bias":{},' + data[9 : 8 + length]
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    with pytest.raises(CheckpointError, match="its header lists a name twice"):
        load(path)
