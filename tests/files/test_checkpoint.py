"""Files: saved tensors are read back, detached models equal the sub-models, broken files are refused."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.deploy.detach import choose_model, detach, detach_all
from cnsn_cli.errors import CheckpointError, OutputError
from cnsn_cli.files import tensor_file
from cnsn_cli.files.checkpoint import load, save
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.description import describe
from cnsn_cli.training.recipe import load_recipe
from tests.conftest import rewrite

TASK = Task(("cat", "dog", "eel"), 32, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def write(path: Path, arch: str, exits: tuple[int, ...], bn: str = "private") -> Cnsn:
    """Save a network whose BN statistics are not the initial ones."""
    torch.manual_seed(0)
    network = Cnsn(registry.find(arch).build(TASK), exits, TASK, bn)
    for _ in range(2):
        network(torch.randn(4, 3, 32, 32) * 2 + 1)
    save(path, network, describe(network, registry.find(arch), "digits", load_recipe("paper", {"bn": bn})))
    return network.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize("bn", ["private", "shared"])
def test_what_is_saved_is_loaded(tmp_path, bn):
    network = write(tmp_path / "a.safetensors", "vgg11:width=0.1", (1, 4), bn)
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in loaded.state_dict().items())
    assert loaded.task == TASK
    assert not loaded.training
    images = torch.randn(2, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), network(images), strict=True))


@pytest.mark.parametrize(
    ("arch", "bn"),
    [("vgg16:width=0.1", "private"), ("resnet20:width=0.5", "private"), ("vgg11:width=0.1", "shared")],
)
def test_a_detached_model_is_the_submodel(tmp_path, arch, bn):
    whole = tmp_path / "whole.safetensors"
    exits = tuple(
        point.drops for point in detach_points(registry.find(arch).build_blank(TASK), TASK.image_shape)
    )
    network = write(whole, arch, exits, bn)
    images = torch.randn(3, 3, 32, 32)
    for index, model in enumerate(load(whole).models()):
        small = tmp_path / f"{model.name}.safetensors"
        metadata = detach(whole, model.name, small)
        alone = load(small)
        assert torch.equal(alone(images), model(images))
        assert torch.equal(alone(images), network.models()[index](images))
        assert (alone.name, alone.drops) == (model.name, model.drops)
        assert alone.state_dict().keys() == model.state_dict().keys()
        with safe_open(small, framework="pt") as file:
            assert set(file.keys()) == set(model.state_dict())
        held = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        assert metadata.models[0].bytes == held
        assert held < small.stat().st_size <= held + 16 * 1024 + 256 * len(model.state_dict())


def test_detaching_twice_gives_identical_files(checkpoint, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    detach(checkpoint, "submodel1", first)
    detach(checkpoint, "1", second)
    assert first.read_bytes() == second.read_bytes()


def test_saving_twice_gives_identical_files(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", "vgg11:width=0.1", (1, 4))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_detached_file_commits_to_its_parent(checkpoint, tmp_path):
    small = tmp_path / "small.safetensors"
    detach(checkpoint, "0", small)
    metadata = read_metadata(small, read_header(small))
    assert metadata.parent == read_header(checkpoint).sha256
    assert metadata.kind == "detached"
    assert metadata.data
    with pytest.raises(CheckpointError, match=r"is detached already: it holds submodel0 alone"):
        detach(small, "0", tmp_path / "smaller.safetensors")


def flip_bit(path: Path, tensor: str) -> None:
    header = read_header(path)
    data = bytearray(path.read_bytes())
    data[header.data_start + header.entries[tensor].start + 2] ^= 1
    path.write_bytes(data)


def test_detach_reads_only_what_it_keeps(checkpoint, tmp_path):
    """Damage in a dropped layer goes unnoticed, damage in a kept one does not."""
    copy, expected = tmp_path / "copy.safetensors", tmp_path / "expected.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    detach(checkpoint, "submodel1", expected)
    flip_bit(copy, "units.0.0.weight")
    detach(copy, "submodel1", tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").read_bytes() == expected.read_bytes()
    flip_bit(copy, "units.7.0.weight")
    with pytest.raises(CheckpointError, match=r"is damaged: tensor 'units.7.0.weight' is not as it was"):
        detach(copy, "submodel1", tmp_path / "new.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy.safetensors", "expected.safetensors", "small.safetensors",
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"is damaged"):
        load(copy)


def detach_without_torch(checkpoint: Path, submodel: str, output: Path) -> None:
    code = (
        "import sys, cnsn_cli\n"
        f"cnsn_cli.detach({str(checkpoint)!r}, {submodel!r}, {str(output)!r})\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_detach_needs_no_torch(checkpoint, tmp_path):
    detach_without_torch(checkpoint, "submodel1", tmp_path / "s.safetensors")


def test_all_models_into_a_folder(checkpoint, tmp_path):
    written = detach_all(checkpoint, tmp_path / "all")
    assert [path.name for path in written] == [f"{n}.safetensors" for n in ("base", "submodel0", "submodel1")]
    assert all(load(path).name == path.stem for path in written)
    with pytest.raises(OutputError, match=r"exists: give --force"):
        detach_all(checkpoint, tmp_path / "all")


def test_output_is_never_overwritten_by_accident(checkpoint, tmp_path):
    before, target = checkpoint.read_bytes(), tmp_path / "small.safetensors"
    target.write_text("mine")
    with pytest.raises(OutputError, match=r"exists: give --force"):
        detach(checkpoint, "0", target)
    assert target.read_text() == "mine"
    with pytest.raises(OutputError, match=r"is the checkpoint itself"):
        detach(checkpoint, "0", checkpoint, force=True)
    assert checkpoint.read_bytes() == before
    with pytest.raises(OutputError, match=r"no folder .*nowhere: create it first"):
        detach(checkpoint, "0", tmp_path / "nowhere" / "small.safetensors")
    detach(checkpoint, "0", target, force=True)
    assert load(target).name == "submodel0"


def test_an_unknown_submodel_names_the_known(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"no model 'submodel9': choose base, submodel0, submodel1"):
        detach(checkpoint, "9", tmp_path / "small.safetensors")
    assert not list(tmp_path.iterdir())


def test_detach_refuses_metadata_that_do_not_fit(checkpoint, tmp_path):
    path, target = tmp_path / "odd.safetensors", tmp_path / "small.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    rewrite(path, lambda c, m: m["models"][1].update(first_unit=5))
    with pytest.raises(CheckpointError, match=r"submodel0 takes [\d,]+ bytes in it, not the [\d,]+ that its"):
        detach(path, "0", target)
    assert not target.exists()


def test_no_more_bytes_are_read_than_are_kept(checkpoint, tmp_path, monkeypatch):
    """The test with damaged tensors would miss bytes that are read and then ignored."""
    read, opened = [], []

    class Counting(io.FileIO):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append(self)

        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(
        tensor_file, "open", lambda file, mode, buffering: Counting(file, mode), raising=False
    )
    metadata = detach(checkpoint, "submodel1", tmp_path / "small.safetensors")
    header = read_header(tmp_path / "small.safetensors")
    whole = read_header(checkpoint)
    kept = metadata.models[0].bytes
    # The header of the new file is read back by detach, and both headers are read by the lines above.
    assert sum(read) == kept + 2 * whole.data_start + 2 * header.data_start
    assert len(opened) == 2 + 2


def test_other_things_than_files_are_refused(checkpoint, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="pipe is no ordinary file"):
        load(pipe)
    with pytest.raises(OutputError, match="pipe is no ordinary file"):
        detach(checkpoint, "0", pipe, force=True)


def test_detach_all_onto_the_checkpoint_writes_nothing(checkpoint, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "submodel1.safetensors").write_bytes(checkpoint.read_bytes())
    with pytest.raises(OutputError, match="is the checkpoint itself"):
        detach_all(folder / "submodel1.safetensors", folder, force=True)
    assert len(list(folder.iterdir())) == 1
    detach(checkpoint, "0", tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match="is detached already"):
        detach_all(tmp_path / "alone.safetensors", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_the_most_accurate_is_not_always_the_largest(checkpoint, tmp_path):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(checkpoint.read_bytes())

    def change(content, metadata):
        for model, accuracy in zip(metadata["models"], (0.5, 0.75, 0.25), strict=True):
            model["accuracy"] = accuracy

    rewrite(path, change)
    assert choose_model(path, {"macs": 10**12}).name == "submodel0"


def test_a_full_disk_is_one_line(checkpoint, monkeypatch, tmp_path):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cnsn_cli.files.writer.os.fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*x.safetensors: No space left"):
        write(tmp_path / "x.safetensors", "vgg11:width=0.1", ())
    assert not list(tmp_path.iterdir())


MASKED = """
import torch
from torch import nn
from cnsn_cli import Backbone

class Masked(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, 4, 3, 2, 1)
        self.register_buffer("mask", torch.ones(4, 1, 1, dtype=torch.bool))
        self.register_buffer("scale", torch.ones(4, 1, 1, dtype=torch.float16))

    def forward(self, features):
        return super().forward(features) * self.mask * self.scale

def masked(num_classes, in_channels, image_size):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return Backbone(nn.Sequential(Masked(in_channels), Masked(4)), head, (1, 1))
"""


def test_buffers_of_other_dtypes(distribution, tmp_path):
    distribution("masks", {"masks": MASKED}, {"masked": "masks:masked"})
    network = write(tmp_path / "a.safetensors", "masked", (1,))
    loaded = load(tmp_path / "a.safetensors").state_dict()
    assert loaded["units.1.mask"].dtype == torch.bool
    assert loaded["units.1.scale"].dtype == torch.float16
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.items())
    detach(tmp_path / "a.safetensors", "0", tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors").state_dict()["units.1.mask"].dtype == torch.bool
