"""`cnsn export --quantize int8`."""

import json

import onnx
import pytest
import torch

from cnsn_cli.data.datasets import load_dataset, sample_train
from cnsn_cli.data.origin import Origin
from cnsn_cli.deploy.int8 import export_int8
from cnsn_cli.evaluation.accuracy import evaluate_file
from cnsn_cli.files.onnx_model import OnnxModel
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import train
from tests.commands.test_cli import one_line


def test_weights_are_int8_and_what_it_costs_is_what_eval_says(cnsn, checkpoint, tmp_path):
    small = tmp_path / "small.onnx"
    words = (
        "export",
        checkpoint,
        "--to",
        "onnx",
        "--submodel",
        1,
        "--quantize",
        "int8",
        "-o",
        small,
        "--json",
    )
    content = json.loads(cnsn(*words).out)
    graph = onnx.load(small).graph
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
    assert len(matrices) == 6  # the step-down conv, 4 convs, a linear layer
    assert {tensor.data_type for tensor in matrices} == {onnx.TensorProto.INT8}
    assert content["comparison"]["after"]["bytes"] == content["bytes"] == small.stat().st_size
    assert content["comparison"]["images"] == 16
    (expected,) = evaluate_file(small).results
    for figures in (content["comparison"]["after"], content["model"]):
        assert (figures["accuracy"], figures["loss"]) == (expected.accuracy, expected.loss)
    (before,) = evaluate_file(checkpoint).results[2:]
    assert content["comparison"]["before"]["accuracy"] == before.accuracy
    assert expected.loss == pytest.approx(before.loss, abs=0.1)
    assert expected.loss != before.loss
    assert "weights      int8" in cnsn("info", small).out


def test_with_preprocessing_inside(checkpoint, tmp_path):
    exported, comparison = export_int8(checkpoint, tmp_path / "a.onnx", "0", with_preprocess=True)
    model = OnnxModel(tmp_path / "a.onnx")
    assert model.input == "tensor(uint8)"
    assert exported.metadata == model.metadata
    assert comparison.after.loss == pytest.approx(comparison.before.loss, abs=0.1)


def test_calibration_takes_images_at_even_distances(image_folder):
    dataset = load_dataset(str(image_folder))
    sample = sample_train(Origin(str(image_folder)), dataset.task, 4)
    assert sample.labels.tolist() == [0, 0, 1, 1]  # images 0, 16, 32 and 48 of 64
    (pixels,) = sample.batches([torch.arange(4)])
    (expected,) = dataset.train.batches([torch.tensor([0, 16, 32, 48])])
    assert torch.equal(pixels, expected)
    assert len(sample_train(Origin(str(image_folder)), dataset.task, 1000)) == 64


def test_bad_input_for_quantize(cnsn, checkpoint, tmp_path):
    target = tmp_path / "a.onnx"
    assert cnsn("export", checkpoint, "--to", "pt2", "--quantize", "int8", "-o", tmp_path / "a.pt2").code == 2
    words = ("export", checkpoint, "--to", "onnx", "--quantize", "int8", "-o", target)
    assert "no data set or folder 'gone'" in one_line(cnsn(*words, "--data", "gone"))
    assert cnsn(*words, "--calibrate", 0).code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_trained_vgg16_without_7_convs(tmp_path):
    """int8 loses at most 1 % of accuracy, takes at most 27 % of the bytes, and is not slower."""
    recipe = load_recipe("quick")
    train("vgg16:width=0.25", (2, 7), "digits", recipe, tmp_path / "run")
    exported, comparison = export_int8(tmp_path / "run" / "best.safetensors", tmp_path / "small.onnx", "1")
    assert exported.metadata.models[0].drops == 7
    assert comparison.before.accuracy > 0.9
    assert comparison.after.accuracy >= comparison.before.accuracy - 0.01
    assert comparison.after.bytes <= 0.27 * comparison.before.bytes
    assert comparison.after.latency <= comparison.before.latency
