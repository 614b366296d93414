import json
import math
import re

import pytest
import torch
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.data.origin import Origin
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import DataError
from cnsn_cli.evaluation.accuracy import evaluate, evaluate_classes, evaluate_file
from cnsn_cli.evaluation.confusion_picture import draw_confusions
from cnsn_cli.files.checkpoint import load, save
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.description import describe
from cnsn_cli.training.recipe import load_recipe
from tests.commands.test_cli import one_line


class Brightness(nn.Module):
    """A head with the logits (0, -1, x), where x = 10 * (mean of the image, 0..1, - 0.5)."""

    def forward(self, images):
        brightness = (images.mean((1, 2, 3)) - 0.5) * 10
        return torch.stack([torch.zeros_like(brightness), -torch.ones_like(brightness), brightness], 1)


@pytest.fixture
def model():
    head = Brightness()
    head.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    return Model("base", 0, None, {"0": nn.Identity()}, head, Task.plain(3, 2, 1))


def images(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def test_accuracy_and_loss_by_hand(model):
    split = MemorySplit(images(0, 255, 255), torch.tensor([0, 2, 0]))
    (result,) = evaluate(model, split)

    def loss(scores: list[float], label: int) -> float:
        return math.log(sum(map(math.exp, scores))) - scores[label]

    expected = (loss([0, -1, -5], 0) + loss([0, -1, 5], 2) + loss([0, -1, 5], 0)) / 3
    assert result.accuracy == 2 / 3
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_per_class_by_hand(model):
    split = MemorySplit(images(0, 0, 255, 255, 255), torch.tensor([0, 1, 2, 2, 0]))
    rows = [(c.precision, c.recall, c.images) for c in evaluate_classes(model, split)]
    assert rows == [(0.5, 0.5, 2), (0.0, 0.0, 1), (pytest.approx(2 / 3), 1.0, 2)]


def test_more_images_than_a_batch(model):
    split = MemorySplit(images(*([0, 255] * 300)), torch.tensor([0, 2] * 300))
    assert evaluate(model, split)[0].accuracy == 1.0


def test_a_detached_file_agrees_with_the_network_to_the_last_digit(checkpoint, tmp_path):
    whole = evaluate_file(checkpoint, device="cpu")
    for index, name in enumerate(("base", "submodel0", "submodel1")):
        detach(checkpoint, name, tmp_path / f"{name}.safetensors")
        alone = evaluate_file(tmp_path / f"{name}.safetensors", device="cpu")
        assert alone.results == [whole.results[index]]
        assert alone.costs == [whole.costs[index]]


def test_figures_in_the_file_are_those_of_eval(checkpoint):
    from cnsn_cli.files.metadata import read_metadata
    from cnsn_cli.files.tensor_file import read_header

    recorded = read_metadata(checkpoint, read_header(checkpoint)).models
    results = evaluate_file(checkpoint, device="cpu").results
    assert [(m.accuracy, m.loss) for m in recorded] == [(r.accuracy, r.loss) for r in results]


def test_when_the_images_are_gone_eval_names_the_option(checkpoint, image_folder, tmp_path):
    from cnsn_cli.training.recipe import load_recipe
    from cnsn_cli.training.run import train

    moved = tmp_path / "moved"
    moved.symlink_to(image_folder)
    recipe = load_recipe("quick", {"epochs": 1, "batch_size": 32})
    train("vgg11:width=0.03", (), str(moved), recipe, tmp_path / "run")
    moved.unlink()
    with pytest.raises(DataError, match=r"no data set or folder .* give another place with --data"):
        evaluate_file(tmp_path / "run" / "best.safetensors")
    assert evaluate_file(tmp_path / "run" / "best.safetensors", Origin(str(image_folder))).images == 16


def test_api_of_the_whole_and_the_detached(checkpoint, image_folder, tmp_path):
    import cnsn_cli

    network = cnsn_cli.load(checkpoint)
    cnsn_cli.detach(checkpoint, "submodel1", tmp_path / "small.safetensors")
    small = cnsn_cli.load(tmp_path / "small.safetensors")
    split = cnsn_cli.load_test(str(image_folder), small.task)
    assert small.task == network.task == load_dataset(str(image_folder)).task
    assert cnsn_cli.evaluate(small, split) == cnsn_cli.evaluate(network, split)[2:]
    assert isinstance(load(checkpoint), cnsn_cli.Cnsn)
    assert not small.training


def test_memory_formats_do_not_tell_a_detached_model_from_the_submodel(tmp_path):
    """At this width some units take 256 channels of 4 x 4 pixels, which evaluation lays out contiguously."""
    task = Task.plain()
    torch.manual_seed(0)
    network = Cnsn(registry.find("vgg16:width=0.5").build(task), (2, 9), task)
    network(torch.randn(4, 3, 32, 32))
    path = tmp_path / "whole.safetensors"
    save(path, network, describe(network, registry.find("vgg16:width=0.5"), "digits", load_recipe("paper")))
    split = MemorySplit(torch.randint(256, (230, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (230,)))
    whole = place(load(path), torch.device("cpu"))
    formats = {unit[0].weight.is_contiguous() for unit in whole.units}
    assert formats == {True, False}
    for index, name in enumerate(("base", "submodel0", "submodel1")):
        detach(path, name, tmp_path / name)
        alone = place(load(tmp_path / name), torch.device("cpu"))
        assert evaluate(alone, split) == evaluate(whole, split)[index : index + 1]


def test_confusions_are_those_of_predict(cnsn, checkpoint, image_folder, tmp_path):
    """Counted here from the answers of `cnsn predict`, whose order is that of the file names."""
    done = cnsn("eval", checkpoint, "--confusion", "--json", "-o", tmp_path / "a.svg")
    shown = []
    for model in json.loads(done.out)["models"]:
        expected = []
        for true in ("bright", "dark"):
            words = ("predict", checkpoint, image_folder / "test" / true, "--top", 1, "--json")
            words += ("--submodel", model["name"].removeprefix("submodel"))
            images = json.loads(cnsn(*words).out)["images"]
            found = [image["classes"][0]["class_name"] for image in images]
            expected.append([found.count("bright"), found.count("dark")])
        assert model["confusion"] == expected
        assert sum(expected[i][i] for i in range(2)) / 16 == model["accuracy"]
        shown += [tuple(map(str, row)) for row in expected]
    assert (tmp_path / "a.svg").read_text().count("<!-- predicted class -->") == 3
    out = cnsn("eval", checkpoint, "--confusion").out
    assert re.search(r"true class +bright +dark", out)
    assert re.findall(r"(?:bright|dark) +(\d+) +(\d+)", out) == shown


def test_a_picture_of_confusions_has_a_row_for_each_true_class(tmp_path):
    draw_confusions({"base": [[11, 12], [21, 22]]}, ("cat", "dog"), tmp_path / "a.svg", force=False)
    place = re.compile(r"<!-- (.+) -->\s*<g [^>]*translate\(([\d.]+) ([\d.]+)\)")
    found = place.findall((tmp_path / "a.svg").read_text())
    places = {text: (float(x), float(y)) for text, x, y in found}
    (left, top), (right, bottom) = places["11"], places["22"]
    assert left < right
    assert top < bottom  # y grows downwards
    assert places["12"] == pytest.approx((right, top), abs=1)
    assert places["21"] == pytest.approx((left, bottom), abs=1)
    assert places["predicted class"][1] > bottom
    assert places["true class"][0] < left


def test_a_picture_of_confusions_is_checked_first(cnsn, checkpoint, tmp_path):
    assert "end it in .png or .svg" in one_line(cnsn("eval", checkpoint, "--confusion", "-o", "a.txt"))
    (tmp_path / "a.png").touch()
    taken = ("eval", checkpoint, "--confusion", "-o", tmp_path / "a.png")
    assert "exists: give --force" in one_line(cnsn(*taken))
    assert "-o goes with --confusion" in cnsn("eval", checkpoint, "-o", tmp_path / "b.png").err
