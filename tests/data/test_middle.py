"""`crop_pct`: the middle of a picture is what training evaluates, and what every later command sees."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.data.pixels import normalise, to_pixels
from cnsn_cli.errors import DataError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import train
from tests.conftest import TINY, rewrite


@pytest.fixture(scope="module")
def framed(tmp_path_factory, image_folder) -> Path:
    """The pictures of `image_folder` in frames of noise: each is the middle half of a wider picture."""
    folder = tmp_path_factory.mktemp("framed")
    noise = np.random.default_rng(0)
    for path in image_folder.rglob("*.png"):
        canvas = noise.integers(0, 256, (64, 90, 3), dtype=np.uint8)
        canvas[16:48, 29:61] = np.asarray(Image.open(path))
        target = folder / path.relative_to(image_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas).save(target)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, framed) -> Path:
    changes = {"epochs": 1, "lr": 0.02, "batch_size": 8, "crop_pct": 0.5}
    folder = tmp_path_factory.mktemp("run")
    train(TINY, (1,), str(framed), load_recipe("quick", changes), folder, image_size=32)
    return folder


def test_a_half_of_the_shorter_side_is_the_picture_in_the_frame(framed, image_folder):
    found = load_dataset(str(framed), image_size=32, crop_pct=0.5)
    expected = load_dataset(str(image_folder))
    assert torch.equal(found.train.pixels, expected.train.pixels)
    assert torch.equal(found.test.pixels, expected.test.pixels)
    assert (found.task.mean, found.task.crop_pct) == (expected.task.mean, 0.5)


@pytest.mark.parametrize("size", [(600, 400), (400, 600)])
def test_it_is_resize_and_centre_crop_of_torchvision(size):
    smooth = Image.effect_noise((30, 30), 80).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    usual = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])(smooth)
    found = to_pixels(smooth, 224, 3, crop_pct=224 / 256)
    assert (found.float() - usual.float()).abs().mean() < 1
    assert (to_pixels(smooth, 224, 3).float() - usual.float()).abs().mean() > 3


def test_eval_predict_preprocess_and_exports_see_the_middle(cnsn, run, framed, image_folder, tmp_path):
    file = run / "best.safetensors"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    models = json.loads(cnsn("eval", file, "--json").out)["models"]
    assert [m["loss"] for m in models] == [m["loss"] for m in last["results"]]

    network, picture = load(file), framed / "test/bright/03.png"
    plain = to_pixels(Image.open(image_folder / "test/bright/03.png"), 32, 3)
    image = network.preprocess(Image.open(picture))
    assert torch.equal(image, normalise(plain[None], network.task)[0])
    expected = network.models()[0].eval()(image[None]).double().softmax(1)[0].tolist()
    assert cnsn("export", file, "--submodel", "base", "--to", "onnx", "-o", tmp_path / "a.onnx").code == 0
    texts = {prop.key: prop.value for prop in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(texts["crop_pct"]) == 0.5
    for model in (file, tmp_path / "a.onnx"):
        ((guess, _),) = (
            row["classes"] for row in json.loads(cnsn("predict", model, picture, "--json").out)["images"]
        )
        number = network.task.class_names.index(guess["class_name"])
        assert guess["probability"] == pytest.approx(expected[number], abs=1e-5)
    assert "the middle 50.0% of the shorter side" in cnsn("info", tmp_path / "a.onnx").out


def test_a_file_without_it_is_as_before(checkpoint, run):
    assert "crop_pct" not in _task(checkpoint)
    assert load(checkpoint).task.crop_pct == 1
    assert _task(run / "best.safetensors")["crop_pct"] == 0.5


def _task(file: Path) -> dict:
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["cnsn"])["task"]


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_file_with_an_impossible_share_is_refused(cnsn, run, tmp_path, share):
    file = tmp_path / "x.safetensors"
    file.write_bytes((run / "best.safetensors").read_bytes())
    rewrite(file, lambda content, meta: meta["task"].update(crop_pct=float(share)))
    result = cnsn("eval", file)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert f"{float(share)} of the side of a picture, not a share of 0 to 1" in result.err


def test_a_frozen_base_decides(run, framed, tmp_path):
    base = run / "best.safetensors"

    def extend(out: str, **changes: object) -> Path:
        recipe = load_recipe("quick", {"epochs": 1, "batch_size": 8, **changes})
        train(TINY, (4,), str(framed), recipe, tmp_path / out, freeze_base=base)
        return tmp_path / out / "best.safetensors"

    assert load(extend("same")).task == load(base).task
    with pytest.raises(DataError, match=r"has crop_pct 0.75, .* was trained on 0.5"):
        extend("other", crop_pct=0.75)


def test_a_resumed_run_cannot_change_it(cnsn, run):
    result = cnsn("train", "--resume", run, "--crop-pct", 0.7, "--override", "--epochs", 2)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "cannot go on with crop_pct 0.5 -> 0.7" in result.err
