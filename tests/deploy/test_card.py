"""Model cards: hubs and people read what the file says."""

import json
import re
import shlex

import pytest
import yaml

import cnsn_cli
from cnsn_cli.deploy.card import card, training_command
from cnsn_cli.deploy.detach import detach
from cnsn_cli.errors import CnsnError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import read_header
from tests.commands.test_cli import one_line
from tests.conftest import TINY, rewrite


@pytest.fixture
def small(checkpoint, tmp_path):
    detach(checkpoint, "1", tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def metadata_of(path):
    return read_metadata(path, read_header(path))


def front_matter(text):
    _, fields, body = text.split("---\n", 2)
    return yaml.safe_load(fields), body


def test_the_fields_that_hubs_read(cnsn, small, image_folder):
    model = metadata_of(small).models[0]
    fields, _ = front_matter(cnsn("card", small, "--license", "apache-2.0").out)
    assert fields["license"] == "apache-2.0"
    assert fields["pipeline_tag"] == "image-classification"
    assert fields["datasets"] == [image_folder.name]
    assert fields["metrics"] == ["accuracy"]
    assert fields["macs"] == {"submodel1": model.macs}
    (entry,) = fields["model-index"]
    assert entry["name"] == f"submodel1 of {TINY}"
    (result,) = entry["results"]
    assert result["metrics"] == [
        {"type": "accuracy", "value": model.accuracy, "name": "accuracy of submodel1"}
    ]
    assert result["dataset"] == {"name": image_folder.name, "type": image_folder.name}


def test_what_people_read(small, checkpoint):
    _, body = front_matter(card(small, "mit"))
    for part in (
        "32 x 32 RGB images into 2 classes: `bright`, `dark`.",
        "the first 4 conv layers",
        "Accuracy is on the test images, which chose the epoch too",
        f"`{read_header(checkpoint).sha256}`",
        "weights in float32",
    ):
        assert part in body
    _, body = front_matter(card(checkpoint, "mit"))
    assert re.findall(r"^\| (base|submodel\d) ", body, re.M) == ["base", "submodel0", "submodel1"]


def test_the_command_trains_the_same_network(cnsn, small, checkpoint, monkeypatch):
    command = training_command(metadata_of(small))
    assert command == training_command(metadata_of(checkpoint))
    assert f"```sh\n{command}\n```" in card(small, "mit")
    called = []

    def train(*arguments, **options):
        called.append((arguments, options))
        raise CnsnError("enough")

    monkeypatch.setattr("cnsn_cli.training.run.train", train)
    assert cnsn(*shlex.split(command)[1:]).code == 1
    ((arch, exits, _, recipe, _), options) = called[0]
    assert (arch.text, exits) == (TINY, (1, 4))
    assert recipe.model_dump(mode="json") == metadata_of(checkpoint).recipe
    assert (options["image_size"], options["in_channels"], options["precision"]) == (32, 3, "fp32")


def test_a_folder_to_upload(cnsn, small, tmp_path):
    folder = tmp_path / "upload"
    assert cnsn("card", small, "-o", folder).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == small.read_bytes()
    assert (folder / "README.md").read_text() == card(small, "unknown")
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bright", "1": "dark"}
    assert config["architectures"] == [TINY]
    assert tuple(config["image_mean"]) == load(small).task.mean
    assert config["models"][0]["drops"] == 4


def test_the_example_in_the_card_runs(small, image_folder, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", card(small, "mit"), re.S)[1]
    (tmp_path / "model.safetensors").write_bytes(small.read_bytes())
    (tmp_path / "picture.png").write_bytes((image_folder / "test" / "dark" / "00.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.strip() in ("bright", "dark")


def test_names_stay_names(small):
    """Class names that look like Markdown, a field or an escape sequence have no effect."""

    def change(content, metadata):
        metadata["task"]["class_names"] = ["`x` <b>", "a\n---\nlicense: mine\x1b[31m"]

    rewrite(small, change)
    text = card(small, "mit")
    assert "2 classes: `'x' <b>`, `a --- license: mine [31m`." in text
    assert front_matter(text)[0]["license"] == "mit"


def test_a_model_has_no_name_of_its_own(cnsn, small):
    """Many commands print the name of a model, and a terminal would obey escape sequences in it."""
    rewrite(small, lambda content, metadata: metadata["models"][0].update(name="x\x1b]0;mine\x07\n---"))
    message = one_line(cnsn("card", small))
    assert message.endswith(r"a detached model is base or submodel<number>, not 'x\x1b]0;mine\x07\n---'")


def test_bad_input_for_card(cnsn, small, tmp_path):
    assert "no folder" in one_line(cnsn("card", small, "-o", tmp_path / "no" / "upload"))
    assert "is a file: give the name of a folder" in one_line(cnsn("card", small, "-o", small))
    assert "is no safetensors file" in one_line(cnsn("card", __file__))
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    assert "README.md exists: give --force" in one_line(cnsn("card", small, "-o", folder))
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert cnsn("card", small, "-o", folder, "--force").code == 0
    message = one_line(cnsn("card", folder / "model.safetensors", "-o", folder, "--force"))
    assert "is the file itself" in message


def test_python_users_get_what_the_command_prints(cnsn, small):
    assert cnsn_cli.card(str(small)) == cnsn("card", small).out
    assert cnsn_cli.card(small, "mit") == cnsn("card", small, "--license", "mit").out
