"""`cnsn detach --dtype`: weights of two bytes."""

import json
import shutil

import numpy as np
import pytest
import torch

from cnsn_cli.data.origin import Origin
from cnsn_cli.deploy.changes import Changes
from cnsn_cli.deploy.detach import detach
from cnsn_cli.deploy.export import export
from cnsn_cli.deploy.recompute import half_from
from cnsn_cli.errors import CheckpointError
from cnsn_cli.evaluation.accuracy import evaluate_file
from cnsn_cli.files.checkpoint import load, read_plain
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import TensorFile, read_header
from tests.commands.test_cli import one_line
from tests.conftest import lively, saved


def detach_half(checkpoint, submodel, output, dtype, **changes):
    with TensorFile(checkpoint) as file:
        return half_from(file, submodel, output, dtype, False, Changes(**changes))


def rounded(values: torch.Tensor, dtype: str) -> np.ndarray:
    """`values` rounded to `dtype`: float16 by numpy; bfloat16 as the upper half of a float32."""
    array = values.detach().numpy()
    if dtype == "float16":
        return array.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(array).view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return (upper << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_rounded_and_statistics_are_not(checkpoint, tmp_path, dtype):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    detach(checkpoint, "submodel0", whole)
    metadata, _ = detach_half(checkpoint, "0", half, dtype)
    expected, found = load(whole), load(half)
    for (name, before), after in zip(expected.named_parameters(), found.parameters(), strict=True):
        assert after.dtype == torch.float32
        assert np.array_equal(after.detach().numpy(), rounded(before, dtype)), name
    for (name, before), after in zip(expected.named_buffers(), found.buffers(), strict=True):
        assert torch.equal(before, after), name
    parameters, statistics = metadata.models[0].parameters, sum(b.nbytes for b in expected.buffers())
    assert metadata.models[0].bytes == 2 * parameters + statistics
    assert metadata == read_metadata(half, read_header(half))
    assert {str(tensor.dtype) for tensor in read_plain(half).values()} == {
        f"torch.{dtype}",
        "torch.float32",
        "torch.int64",
    }


def test_what_it_costs_is_what_eval_says(cnsn, checkpoint, tmp_path):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    detach(checkpoint, "submodel1", whole)
    result = cnsn("detach", checkpoint, "--submodel", 1, "--dtype", "bfloat16", "-o", half, "--json")
    content = json.loads(result.out)
    for file, figures in ((whole, "before"), (half, "after")):
        (expected,) = evaluate_file(file, device="cpu").results
        found = content["comparison"][figures]
        assert (found["accuracy"], found["loss"]) == (expected.accuracy, expected.loss)
        assert found["bytes"] == file.stat().st_size
        assert found["latency"] > 0
    assert content["comparison"]["images"] == 16
    assert content["models"][0]["accuracy"] == content["comparison"]["after"]["accuracy"]
    (eval_shown,) = json.loads(cnsn("eval", half, "--json").out)["models"]
    (mac_shown,) = json.loads(cnsn("mac", half, "--json").out)["models"]
    assert eval_shown["bytes"] == mac_shown["bytes"] == content["models"][0]["bytes"]
    assert "weights      bfloat16" in cnsn("info", half).out


def test_folded_too(checkpoint, tmp_path):
    half = tmp_path / "half.safetensors"
    metadata, comparison = detach_half(checkpoint, "1", half, "float16", fold_bn=True)
    assert metadata.folded
    assert metadata.models[0].bytes == 2 * metadata.models[0].parameters  # no BN statistics are left
    assert evaluate_file(half, device="cpu").results[0].accuracy == comparison.after.accuracy


def test_without_the_test_images_accuracy_is_unknown(cnsn, checkpoint, image_folder, tmp_path):
    from cnsn_cli.training.recipe import load_recipe
    from cnsn_cli.training.run import train

    moved, half = tmp_path / "moved", tmp_path / "half.safetensors"
    moved.symlink_to(image_folder)
    recipe = load_recipe("quick", {"epochs": 1, "batch_size": 32})
    train("vgg11:width=0.03", (1,), str(moved), recipe, tmp_path / "run")
    moved.unlink()
    words = (
        "detach",
        tmp_path / "run" / "best.safetensors",
        "--submodel",
        0,
        "--dtype",
        "float16",
        "-o",
        half,
    )
    out = cnsn(*words).out
    assert "no test images at hand" in out
    assert out.count("unknown") == 2
    assert read_metadata(half, read_header(half)).models[0].accuracy is None
    assert "no data set or folder 'gone'" in one_line(cnsn(*words, "--data", "gone", "--force"))
    found = cnsn(*words, "--data", image_folder, "--force").out
    assert "accuracy on 16 test images" in found
    # The accuracy on --data is printed but not recorded: the file records only that on its own data set.
    assert read_metadata(half, read_header(half)).models[0].accuracy is None


def test_a_weight_beyond_float16(tmp_path):
    network = lively("vgg11:width=0.05", (4,))
    with torch.no_grad():
        network.head[1].weight[0, 0] = 1e5
    whole = saved(tmp_path / "whole.safetensors", network, "vgg11:width=0.05")
    with pytest.raises(CheckpointError, match=r"head\.1\.weight has weights above 65504, .* take bfloat16"):
        detach_half(whole, "0", tmp_path / "half.safetensors", "float16", data=Origin(data_dir=tmp_path))
    assert not (tmp_path / "half.safetensors").exists()


def test_an_export_of_it_is_float32(checkpoint, tmp_path):
    detach_half(checkpoint, "1", tmp_path / "half.safetensors", "float16")
    exported = export(tmp_path / "half.safetensors", "onnx", tmp_path / "half.onnx")
    whole = read_metadata(checkpoint, read_header(checkpoint)).models[2]
    assert exported.metadata.dtype == "float32"
    assert exported.metadata.models[0].bytes == whole.bytes


def test_a_file_whose_tensors_are_not_what_it_says(checkpoint, tmp_path):
    detach(checkpoint, "1", tmp_path / "plain.safetensors")
    content = (tmp_path / "plain.safetensors").read_bytes()
    assert b'\\"dtype\\":\\"float32\\"' in content
    (tmp_path / "lie.safetensors").write_bytes(content.replace(b'\\"float32\\"', b'\\"float16\\"'))
    with pytest.raises(CheckpointError, match="has dtype F32, its architecture wants F16"):
        load(tmp_path / "lie.safetensors")
    half = tmp_path / "half.safetensors"
    detach_half(checkpoint, "1", half, "float16")
    shutil.copy(half, tmp_path / "damaged.safetensors")
    with (tmp_path / "damaged.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x55\x55")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(tmp_path / "damaged.safetensors")


def test_bad_words(cnsn, checkpoint, tmp_path):
    assert cnsn("detach", checkpoint, "--all", "--dtype", "float16", "-o", tmp_path / "all").code == 2
    assert cnsn("detach", checkpoint, "--submodel", 1, "--dtype", "int4", "-o", tmp_path / "x").code == 2
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    words = ("detach", checkpoint, "--submodel", 1, "--dtype", "float16", "-o")
    assert "give --force" in one_line(cnsn(*words, taken))
    assert "create it first" in one_line(cnsn(*words, tmp_path / "no" / "x.safetensors"))
    assert taken.read_text() == "mine"
