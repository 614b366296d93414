"""Commands on a network with narrow sub-models: every list tells depth and width."""

import json
import re

import pytest
import torch
from PIL import Image

from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import train
from tests.conftest import TINY

EXITS = (1, "@0.5", "4@0.5")
PLACES = [("base", 0, 1), ("submodel0", 1, 1), ("submodel1", 0, 0.5), ("submodel2", 4, 0.5)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, image_folder):
    recipe = load_recipe("quick", {"epochs": 1, "lr": 0.02, "batch_size": 8})
    folder = tmp_path_factory.mktemp("run")
    train(TINY, EXITS, str(image_folder), recipe, folder)
    return folder


@pytest.fixture
def file(run):
    return run / "best.safetensors"


def places(models):
    return [(model["name"], model["drops"], model["width"]) for model in models]


def test_json_tells_depth_and_width(cnsn, file, image_folder):
    exits = ",".join(map(str, EXITS))
    assert places(json.loads(cnsn("eval", file, "--json").out)["models"]) == PLACES
    assert places(json.loads(cnsn("info", file, "--json").out)["models"]) == PLACES
    assert places(json.loads(cnsn("mac", file, "--json").out)["models"]) == PLACES
    assert places(json.loads(cnsn("bench", file, "--rounds", 1, "--json").out)["speeds"]) == PLACES
    planned = json.loads(cnsn("mac", "--arch", TINY, "--exits", exits, "--classes", 2, "--json").out)
    assert places(planned["models"]) == PLACES
    counted = json.loads(cnsn("mac", file, "--json").out)["models"]
    assert [m["macs"] for m in planned["models"]] == [m["macs"] for m in counted]


@pytest.mark.parametrize("command", [("eval",), ("info",), ("mac",), ("mac", "--layers")])
def test_tables_tell_depth_and_width(cnsn, file, command):
    out = cnsn(*command, file).out
    rows = re.findall(r"^ *(base|submodel\d) +(\d+) +([\d.]+) ", out, re.M)
    assert [(name, int(drops), float(width)) for name, drops, width in rows] == PLACES
    if "--layers" in command:
        assert "submodel1.units.0" in out
        assert "submodel2.step_down" in out


def test_other_lists(cnsn, file):
    out = cnsn("bench", file, "--rounds", 1).out
    assert [name in out for name in ("submodel0 (1)", "submodel1 (@0.5)", "submodel2 (4@0.5)")] == [True] * 3
    card = cnsn("card", file).out
    assert "| model | conv layers left out | channels kept | MACs |" in card
    assert "| submodel2 | 4 | 0.5 | " in card
    assert f"--exits {','.join(map(str, EXITS))}" in card.replace("'", "")


def test_cards_of_detached_files(cnsn, file, tmp_path):
    small = tmp_path / "small.safetensors"
    cnsn("detach", file, "--submodel", 1, "-o", small)
    card = cnsn("card", small).out
    assert "It is a narrow sub-model: it has the leading channels" in card
    assert "channels kept" not in card
    assert "cnsn train" not in card  # the file does not know the larger network
    cnsn("detach", file, "--submodel", 2, "-o", small, "--force")
    assert "stands for the first 4 conv layers" in cnsn("card", small).out
    cnsn("detach", file, "--submodel", 0, "-o", small, "--force")
    assert "cnsn train" not in cnsn("card", small).out


def test_budgets(cnsn, file, tmp_path):
    models = metadata_in(file).models
    limit = models[2].macs
    chosen = json.loads(cnsn("mac", file, "--max-macs", limit, "--json").out)["chosen"]["name"]
    assert chosen in ("submodel1", "submodel2")
    words = ("--max-bytes", models[2].bytes, "-o", tmp_path / "small.safetensors", "--json")
    (written,) = json.loads(cnsn("detach", file, *words).out)["models"]
    assert written["name"] in ("submodel1", "submodel2")


@pytest.mark.parametrize("more", [(), ("--fold-bn",), ("--recalibrate", 2), ("--dtype", "bfloat16")])
def test_every_way_to_detach(cnsn, file, tmp_path, more):
    small = tmp_path / "small.safetensors"
    assert cnsn("detach", file, "--submodel", 2, "-o", small, *more).code == 0
    metadata = metadata_in(small)
    assert (metadata.format, metadata.arch, metadata.models[0].width) == (1, "vgg11:width=0.03125", 1.0)
    images = torch.randn(3, 3, 32, 32)
    if more in [(), ("--fold-bn",)]:
        expected = load(file).model("submodel2")(images)
        torch.testing.assert_close(load(small)(images), expected, rtol=0, atol=1e-4)
    result = cnsn("eval", small)
    assert result.code == 0, result.err


def test_all_models_into_a_folder(cnsn, file, tmp_path):
    assert cnsn("detach", file, "--all", "-o", tmp_path / "all").code == 0
    archs = {path.stem: metadata_in(path).arch for path in (tmp_path / "all").iterdir()}
    narrow = "vgg11:width=0.03125"
    assert archs == {"base": TINY, "submodel0": TINY, "submodel1": narrow, "submodel2": narrow}


def test_predict_and_plot(cnsn, run, file, tmp_path):
    Image.new("RGB", (32, 32), (200, 10, 10)).save(tmp_path / "a.png")
    result = cnsn("predict", file, tmp_path / "a.png", "--submodel", 2)
    assert result.code == 0, result.err
    svg = tmp_path / "plot.svg"
    assert cnsn("plot", run, "-o", svg).code == 0
    assert (run / "plot.png").exists()


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_export_of_a_narrow_model(cnsn, file, tmp_path, to):
    pytest.importorskip("onnxruntime")
    output = tmp_path / f"small.{to}"
    result = cnsn("export", file, "--submodel", 2, "--to", to, "-o", output)
    assert result.code == 0, result.err
    if to == "onnx":
        found = json.loads(cnsn("info", output, "--json").out)
        assert found["arch"] == "vgg11:width=0.03125"
        assert found["models"][0]["drops"] == 4
        assert cnsn("eval", output).code == 0
