"""What the README and the docs show must work as written."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

from cnsn_cli.backbones import registry
from cnsn_cli.deploy.export import export
from cnsn_cli.files.checkpoint import load
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ("options", "deploy", "plugins", "RESULTS")
SHOWN = "".join([README, *((ROOT / "docs" / f"{name}.md").read_text() for name in PAGES)])
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", SHOWN, re.M | re.S)


def block(language: str, containing: str) -> str:
    (found,) = [text for kind, text in BLOCKS if kind == language and containing in text]
    return found


def test_the_python_example_and_the_accuracy_of_quick(tmp_path, monkeypatch):
    """On the digits every model of a quarter-width VGG-16 reaches 90 % within 4 epochs."""
    monkeypatch.chdir(tmp_path)
    names = {"image": Image.new("RGB", (50, 40))}
    exec(block("python", "import cnsn_cli"), names)
    assert names["recipe"].epochs == 4
    assert [model.name for model in names["run"].models] == ["base", "submodel0", "submodel1"]
    assert min(model.accuracy for model in names["run"].models) >= 0.9
    assert names["logits"].shape == (1, 10)


def test_exported_files_run_as_shown(checkpoint, image_folder, tmp_path, monkeypatch, capsys):
    """Runs the examples for ONNX Runtime and .pt2. Those for OpenVINO and ExecuTorch were run by hand."""
    for to in ("onnx", "pt2"):
        export(checkpoint, to, tmp_path / f"small.{to}")
    (image,) = (image_folder / "test" / "dark").glob("03.png")
    (tmp_path / "picture.png").write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(block("python", "import onnxruntime"), {})
    model = load(checkpoint).base
    expected = model.task.class_names[model(model.preprocess(Image.open(image))[None]).argmax()]
    assert capsys.readouterr().out.strip() == expected
    exec(block("python", "extra_files=texts"), {})
    assert capsys.readouterr().out.strip() in ("bright", "dark")


def test_the_plugin_examples(distribution):
    """Builds the two plug-ins of the tutorial; its pyproject.toml is that of the package in examples/."""
    text = block("toml", "my-nets")
    assert tomllib.loads(text) == tomllib.loads((ROOT / "examples/my-nets/pyproject.toml").read_text())
    entry_points = tomllib.loads(text)["project"]["entry-points"]["cnsn.architectures"]
    source = block("python", "def plain") + block("python", "def twins")
    distribution("my-nets", {"my_nets": source}, entry_points)
    task = Task.plain()
    for arch, exits in (("plain:depth=8", (2, 4)), ("twins:channels=24", (1, 2))):
        network = Cnsn(registry.find(arch).build(task), exits, task)
        assert [logits.shape for logits in network(torch.randn(2, 3, 32, 32))] == [(2, 10)] * 3


LINES = SHOWN.splitlines()
COMMANDS = sorted({line.strip().removeprefix("$ ") for line in LINES if " cnsn " in f" {line}"})
COMMANDS = [re.sub(r" +#.*", "", line) for line in COMMANDS if re.match(r"cnsn [a-z]+ ", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_options_that_are_shown(cnsn, command):
    _, name, *words = command.split()
    usage = cnsn(name, "--help")
    assert usage.code == 0
    for option in [word for word in words if word.startswith("-")]:
        assert re.search(rf"(?<!\S){option}(?!\S)", usage.out), f"{name} has no {option}"


def test_the_table_of_macs(cnsn):
    shown = re.search(r"\$ (cnsn mac --arch vgg16 --exits 2,7)\n(.*?)\n\n", README, re.S)
    printed = cnsn(*shown[1].split()[1:]).out
    assert [line.split() for line in shown[2].splitlines()] == [line.split() for line in printed.splitlines()]
