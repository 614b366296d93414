"""Files of networks with narrow sub-models: detached ones are ordinary files of the narrow architecture."""

import hashlib
import io
import json
import os
import time

import pytest
import torch

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.narrowing import narrow_backbones, narrowed
from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import CheckpointError, CnsnError
from cnsn_cli.evaluation.costs import count_macs
from cnsn_cli.exits import Exit, read_exits
from cnsn_cli.files import pieces, tensor_file
from cnsn_cli.files.checkpoint import load, load_blank
from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.memory_format import for_many_images
from tests.conftest import lively, rewrite, saved
from tests.files.test_checkpoint import detach_without_torch, flip_bit

ARCH, WORDS = "vgg11:width=0.1", (2, "@0.7", "@0.5", "4@0.5")
CASES = [(ARCH, WORDS), ("resnet20:width=0.5", ("7@0.5",)), ("resnet18:width=0.1", (3, "@0.5", "7@0.5"))]


@pytest.fixture
def whole(tmp_path):
    return saved(tmp_path / "whole.safetensors", lively(ARCH, WORDS), ARCH)


@pytest.mark.parametrize(("arch", "words"), CASES)
def test_a_detached_narrow_model_is_the_submodel(tmp_path, arch, words):
    network = lively(arch, words)
    whole = saved(tmp_path / "whole.safetensors", network, arch)
    images = torch.randn(3, 3, 32, 32)
    opened = load(whole)
    for exit, model in zip((Exit(0), *read_exits(words)), opened.models(), strict=True):
        small = tmp_path / f"{model.name}.safetensors"
        metadata = detach(whole, model.name, small)
        alone = load(small)
        assert torch.equal(alone(images), model(images))
        assert torch.equal(for_many_images(alone)(images), for_many_images(opened).model(model.name)(images))
        assert (alone.name, alone.drops, alone.width) == (model.name, exit.drops, 1.0)
        assert metadata.arch == (arch if exit.width == 1 else narrowed(registry.find(arch), exit.width).text)
        held = sum(t.numel() * t.element_size() for t in alone.state_dict().values())
        assert metadata.models[0].bytes == held < small.stat().st_size
        for_few = load(whole)  # `opened` has another layout now
        assert torch.equal(load(small)(images), for_few.model(model.name)(images))


@pytest.mark.parametrize(("arch", "words"), CASES)
def test_its_costs_are_those_of_the_narrow_architecture(tmp_path, arch, words):
    whole = saved(tmp_path / "whole.safetensors", lively(arch, words), arch)
    for exit, record in zip(read_exits(words), metadata_in(whole).models[1:], strict=True):
        text = arch if exit.width == 1 else narrowed(registry.find(arch), exit.width).text
        task = metadata_in(whole).task
        plain = count_macs(text, (exit.drops,) if exit.drops else (), task)[-1]
        figures = (record.macs, record.operations, record.parameters, record.bytes)
        assert figures == (plain.macs, plain.operations, plain.parameters, plain.bytes)
        assert (record.drops, record.width) == exit


def test_a_detached_narrow_file_is_an_ordinary_file(whole, tmp_path):
    """It is of format 1 and has no field that another detached file lacks; the whole file is of format 2."""
    plain = saved(tmp_path / "plain.safetensors", lively(ARCH, (4,)), ARCH)
    detach(plain, "0", tmp_path / "ordinary.safetensors")
    detach(whole, "3", tmp_path / "narrow.safetensors")
    texts = {
        name: json.loads(read_header(tmp_path / f"{name}.safetensors").metadata["cnsn"])
        for name in ("whole", "plain", "ordinary", "narrow")
    }
    assert {name: text["format"] for name, text in texts.items()} == {
        "whole": 2, "plain": 1, "ordinary": 1, "narrow": 1,
    }  # fmt: skip
    assert texts["narrow"].keys() == texts["ordinary"].keys() - {"parent_exits"}
    assert texts["narrow"]["models"][0].keys() == texts["ordinary"]["models"][0].keys()
    assert texts["narrow"]["arch"] == "vgg11:width=0.05"
    assert [model.get("width") for model in texts["whole"]["models"]] == [None, None, 0.7, 0.5, 0.5]
    assert "narrow" not in texts["plain"]


def test_digests_of_blocks_are_those_of_detached_tensors(whole, tmp_path):
    detach(whole, "2", tmp_path / "small.safetensors")
    blocks, own = metadata_in(whole).narrow["0.5"].blocks, metadata_in(tmp_path / "small.safetensors").sha256
    assert len(blocks) == 8 * 4 + 2  # conv weight and bias, BN weight and bias; the linear layer
    assert {name: own[name] for name in blocks} == {name: block.sha256 for name, block in blocks.items()}
    weight = load(whole).units[3][0].weight[: blocks["units.3.0.weight"].shape[0]]
    by_hand = weight[:, : blocks["units.3.0.weight"].shape[1]].contiguous().detach().numpy().tobytes()
    assert hashlib.sha256(by_hand).hexdigest() == own["units.3.0.weight"]


def test_detaching_twice_gives_identical_files(whole, tmp_path):
    for name in ("a", "b"):
        detach(whole, "2", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_detaching_needs_no_torch(whole, tmp_path):
    detach_without_torch(whole, "submodel2", tmp_path / "s.safetensors")


@pytest.mark.parametrize("chunk", [1 << 20, 64])
def test_no_more_bytes_are_read_than_are_kept(whole, tmp_path, monkeypatch, chunk):
    read = []

    class Counting(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    expected = detach(whole, "2", tmp_path / "expected.safetensors")
    monkeypatch.setattr(
        tensor_file, "open", lambda file, mode, buffering: Counting(file, mode), raising=False
    )
    monkeypatch.setattr(pieces, "CHUNK", chunk)

    def counted(file, buffers, offset, preadv=os.preadv):
        read.append(preadv(file, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    detach(whole, "2", tmp_path / "small.safetensors")
    kept, headers = expected.models[0].bytes, len(read)
    small = tmp_path / "small.safetensors"
    assert headers
    total = sum(read)
    monkeypatch.undo()
    assert total == kept + read_header(whole).data_start + read_header(small).data_start
    assert small.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def test_damage_outside_the_blocks_goes_unnoticed(whole, tmp_path):
    detach(whole, "3", tmp_path / "expected.safetensors")
    flip_bit(whole, "units.0.0.weight")
    detach(whole, "3", tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    flip_bit(whole, "units.7.0.weight")
    with pytest.raises(CheckpointError, match=r"is damaged: tensor 'units\.7\.0\.weight' is not as"):
        detach(whole, "3", tmp_path / "new.safetensors")


def _block(meta):
    return meta["narrow"]["0.5"]["blocks"]["units.7.0.weight"]


BROKEN = {
    "format 1": (lambda m: m.update(format=1), "a file of format 2, and no other"),
    "no description": (lambda m: m.pop("narrow"), "a file of format 2, and no other"),
    "another width": (lambda m: m["models"][3].update(width=0.6), "do not have the widths that it describes"),
    "a width of 1": (lambda m: m["models"][3].update(width=1.0), "a sub-model must leave out"),
    "a width of 0": (lambda m: m["models"][3].update(width=0.0), "models.3.width"),
    "a base of another width": (lambda m: m["models"][0].update(width=0.5), "base must be the whole network"),
    "a larger block": (lambda m: _block(m).update(shape=[999, 25, 3, 3]), "are not its architecture's"),
    "a smaller block": (lambda m: _block(m).update(shape=[1, 1, 3, 3]), "are not its architecture's"),
    "a block less": (lambda m: m["narrow"]["0.5"]["blocks"].popitem(), "are not its architecture's"),
    "a narrow detached file": (
        lambda m: m.update(kind="detached", models=m["models"][3:4]),
        "a file of format 2, and no other",
    ),
    "another architecture": (
        lambda m: m["narrow"]["0.5"].update(arch="resnet20:width=0.5"),
        "the width @0.5 of vgg11:width=0.1 is vgg11:width=0.05, not resnet20:width=0.5",
    ),
    "shared statistics": (lambda m: m.update(bn="shared"), "exclude each other"),
    "the wrong order": (lambda m: m["models"][3].update(width=0.7, drops=0), "exits must"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(whole, name):
    change, message = BROKEN[name]
    rewrite(whole, lambda content, meta: change(meta))
    with pytest.raises(CnsnError) as caught:
        load(whole)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [[999, 25, 3, 3], [1, 1, 3, 3], [25], [], [2**40, 1, 1, 1]])
def test_detach_refuses_blocks_that_do_not_fit(whole, tmp_path, shape):
    rewrite(whole, lambda content, meta: _block(meta).update(shape=shape))
    with pytest.raises(CheckpointError, match="is damaged"):
        detach(whole, "3", tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()


def test_an_endless_block_without_bytes(whole, tmp_path):
    """A tensor without values may have any number of rows: nobody counts them."""

    def change(content, meta):
        content["units.7.zz"] = {"dtype": "U8", "shape": [2**40, 0, 5], "data_offsets": [0, 0]}
        meta["narrow"]["0.5"]["blocks"]["units.7.zz"] = {
            "shape": [2**40, 0, 3],
            "sha256": hashlib.sha256(b"").hexdigest(),
        }

    rewrite(whole, change)
    start = time.process_time()
    detach(whole, "3", tmp_path / "small.safetensors")
    assert time.process_time() - start < 2


def test_detaching_by_the_word(whole, tmp_path):
    assert detach(whole, "@0.7", tmp_path / "a.safetensors").models[0].name == "submodel1"
    assert detach(whole, "4@0.5", tmp_path / "b.safetensors").models[0].name == "submodel3"
    assert detach(whole, "2", tmp_path / "c.safetensors").models[0].name == "submodel2"  # no depth


def test_costs_are_counted_without_weights(whole):
    assert [model.width for model in load_blank(whole).network.models()] == [1.0, 1.0, 0.7, 0.5, 0.5]


def test_backbones_of_two_widths_with_the_same_channels():
    arch = registry.find("vgg11:width=0.02")
    wide = arch.build_blank(lively(ARCH, ()).task)
    with pytest.raises(Exception, match=r"widths 0\.9 and 0\.89 give vgg11:width=0\.02 the same channels"):
        narrow_backbones(arch, wide, read_exits(("@0.9", "@0.89")), lively(ARCH, ()).task)
