"""A file is opened once: headers and networks are counted, and files are replaced while they are read."""

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import CheckpointError
from cnsn_cli.files import tensor_file
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.model_file import open_file
from cnsn_cli.files.tensor_file import TensorFile
from cnsn_cli.network.network import Cnsn
from tests.conftest import TINY, lively, saved


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> dict[str, int]:
    """How often the header of `checkpoint` was read, and how many networks were built, in this test.

    The header of a file that was just written is read too, to be sure that it can be read.
    """
    counts = {"headers": 0, "networks": 0}
    read_header, build = tensor_file._read_header, Cnsn.__init__

    def reading(path: Path, *arguments: object) -> object:
        counts["headers"] += path == checkpoint
        return read_header(path, *arguments)

    def building(*arguments: object, **options: object) -> None:
        counts["networks"] += 1
        build(*arguments, **options)

    monkeypatch.setattr(tensor_file, "_read_header", reading)
    monkeypatch.setattr(Cnsn, "__init__", building)
    return counts


@pytest.mark.parametrize(
    ("words", "networks"),
    [
        (("eval",), 1),
        (("eval", "--recalibrate", 1), 1),
        (("detach", "--submodel", 1, "-o", "new.safetensors"), 0),
        (("detach", "--submodel", 1, "--fold-bn", "-o", "new.safetensors"), 1),
        (("detach", "--submodel", 1, "--dtype", "float16", "-o", "new.safetensors"), 1),
        (("detach", "--max-macs", "1G", "--max-latency", "10s", "-o", "new.safetensors"), 1),
        (("detach", "--all", "-o", "new"), 0),
        (("detach", "--all", "--fold-bn", "-o", "new"), 1),
        (("card", "-o", "new"), 0),
        (("export", "--to", "onnx", "-o", "new.onnx"), 1),
        (("export", "--to", "onnx", "--quantize", "int8", "-o", "new.onnx"), 1),
        (("bench", "--rounds", 1), 1),
        (("predict", "picture.png"), 1),
        (("mac",), 1),
        (("info",), 0),
        (("card",), 0),
    ],
)
def test_one_header_and_one_network(
    cnsn, checkpoint, image_folder, tmp_path, monkeypatch, counted, words, networks
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((image_folder / "test" / "dark").glob("*.png")), "picture.png")
    command, *options = words
    done = cnsn(command, checkpoint, *options)
    assert done.code == 0, done.err
    assert counted == {"headers": 1, "networks": networks}


@contextmanager
def swapping(path: Path, versions: tuple[Path, Path]) -> Iterator[None]:
    """Every millisecond `path` is replaced by the next of `versions`, as a run replaces its files."""
    end = threading.Event()

    def swap() -> None:
        for version in itertools.cycle(versions):
            shutil.copy(version, path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)
            if end.wait(0.001):
                return

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


TIMES = [40, pytest.param(200, marks=pytest.mark.long)]


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of one network with other weights."""
    network = lively(TINY, (1, 4))
    first = saved(tmp_path / "first.safetensors", network, TINY)
    with torch.no_grad():
        network.head[1].weight.add_(1)
    return first, saved(tmp_path / "second.safetensors", network, TINY)


@pytest.mark.parametrize("times", TIMES)
def test_a_checkpoint_that_is_replaced_while_it_is_loaded(versions, tmp_path, times):
    path = Path(shutil.copy(versions[0], tmp_path / "best.safetensors"))
    expected = [load(version).head[1].weight for version in versions]
    found = set()
    with swapping(path, versions):
        for _ in range(times):
            weight = load(path).head[1].weight
            (which,) = (number for number, one in enumerate(expected) if torch.equal(one, weight))
            found.add(which)
    assert found == {0, 1}, "the file was not replaced between any two of the loads"


@pytest.mark.parametrize("times", TIMES)
def test_a_checkpoint_that_is_replaced_while_a_model_is_detached(versions, tmp_path, times):
    path = Path(shutil.copy(versions[0], tmp_path / "best.safetensors"))
    expected = []
    for number, version in enumerate(versions):
        detach(version, "1", tmp_path / f"{number}.safetensors")
        expected.append((tmp_path / f"{number}.safetensors").read_bytes())
    assert expected[0] != expected[1]
    found = set()
    with swapping(path, versions):
        for _ in range(times):
            detach(path, "1", tmp_path / "small.safetensors", force=True)
            found.add(expected.index((tmp_path / "small.safetensors").read_bytes()))
    assert found == {0, 1}, "the file was not replaced between any two of the detachments"


def test_a_file_that_shrinks_after_it_was_opened(versions):
    """Replacing is no problem; writing into an open file is what nobody can guard against, but say so."""
    with TensorFile(versions[0]) as file:
        os.truncate(versions[0], file.header.data_start + 10)
        last = max(file.header.entries, key=lambda name: file.header.entries[name].end)
        with pytest.raises(CheckpointError, match="shrank while it was read"):
            file.read(last)


def test_every_file_gives_classifiers_of_one_protocol(cnsn, checkpoint, tmp_path):
    from cnsn_cli.deploy.export import export

    export(checkpoint, "onnx", tmp_path / "a.onnx", "1")
    whole, exported = open_file(checkpoint), open_file(tmp_path / "a.onnx")
    assert [model.name for model in whole.models] == ["base", "submodel0", "submodel1"]
    assert whole.find("1").name == exported.find(None).name == "submodel1"
    assert (whole.find("1").runtime, exported.find("1").runtime) == ("PyTorch", "ONNX Runtime")
    pixels = torch.randint(256, (3, *whole.find("1").task.image_shape), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = whole.find("1").logits(pixels), exported.find("1").logits(pixels)
        assert torch.equal(expected, whole.find("1")(whole.find("1").inputs(pixels)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="no model 'submodel0': choose submodel1"):
        exported.find("0")
