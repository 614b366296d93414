"""What the README and the docs show must work as written."""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from cnsn_cli.backbones import registry
from cnsn_cli.data.image_files import read_image
from cnsn_cli.data.pixels import to_pixels
from cnsn_cli.deploy.export import export
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.run import train
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ("options", "trackers", "search", "deploy", "plugins", "python", "RESULTS")
SHOWN = "".join([README, *((ROOT / "docs" / f"{name}.md").read_text() for name in PAGES)])
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", SHOWN, re.M | re.S)


def block(language: str, containing: str) -> str:
    (found,) = [text for kind, text in BLOCKS if kind == language and containing in text]
    return found


def test_the_python_example_and_the_accuracy_of_quick(tmp_path, monkeypatch):
    """On the digits every model of a quarter-width VGG-16 reaches 90 % within 4 epochs."""
    monkeypatch.chdir(tmp_path)
    names = {"image": Image.new("RGB", (50, 40))}
    exec(block("python", "cnsn_cli.dry_run"), names)
    assert names["recipe"].epochs == 4
    assert [model.name for model in names["run"].models] == ["base", "submodel0", "submodel1"]
    assert min(model.accuracy for model in names["run"].models) >= 0.9
    assert names["logits"].shape == (1, 10)


def test_a_function_of_the_user_follows_a_run_and_the_files_are_used(tmp_path, monkeypatch, capsys):
    """The examples of docs/python.md, one after the other, against the files that they leave."""
    monkeypatch.chdir(tmp_path)
    exec(block("python", "def watch"), {})
    lines = [json.loads(line) for line in Path("watched/metrics.jsonl").read_text().splitlines()]
    shown = [", ".join(f"{r['name']} {r['accuracy']:.1%}" for r in line["results"]) for line in lines]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("500 images, 15 steps an epoch, on ")
    assert [line for line in printed if line[0] == "e"] == [f"epoch {n}: {shown[n - 1]}" for n in (1, 2)]
    assert len(printed) == 1 + 2 * (15 // 5 + 1)

    Path("pictures").mkdir()
    photo(Path("pictures/one.png"), (40, 32), "L")
    exec(block("python", "cnsn_cli.predict"), {})
    printed = capsys.readouterr().out.splitlines()
    models = ["base", "submodel0", "submodel1"]
    assert [line.split()[0] for line in printed] == ["pictures/one.png"] * 2 + models * 2
    assert Path("watched.png").stat().st_size > 0
    assert "license: apache-2.0" in Path("card.md").read_text()

    exec(block("python", "cnsn_cli.evaluate"), {})
    best = max(lines, key=lambda line: sum(r["accuracy"] for r in line["results"]))
    expected = [f"{r['name']} {r['accuracy']:.2%} {r['loss']:.3f}" for r in best["results"]]
    assert capsys.readouterr().out.splitlines() == expected


def test_the_search_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block("python", "recipe, search"), names)
    *picks, exits = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in picks] == [1_000_000, 600_000]
    assert exits == f"exits: {names['found'].exits}"


def test_the_notebook_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert min(result.accuracy for result in names["run"].models) > 0.9
    small, pixels = names["small"], names["pixels"][:3]
    with torch.inference_mode():
        expected = [small.task.class_names[number] for number in small.logits(pixels).argmax(1)]
    assert [prediction.guesses[0].class_name for prediction in names["predictions"].images] == expected
    assert "small.safetensors  submodel1" in capsys.readouterr().out.splitlines()[-1]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def photo(path: Path, size: tuple[int, int], mode: str, orientation: int = 1) -> Path:
    """A noisy picture, dark on its left half and bright on its right half, as a phone may store it."""
    grey = np.kron(np.linspace(20, 230, 8)[None], np.ones((size[1], size[0] // 8)))
    noise = np.random.default_rng(0).normal(0, 20, grey.shape)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray((grey + noise).clip(0, 255).astype(np.uint8)).convert(mode).save(path, exif=exif)
    return path


PHOTOS = {
    "wide": ((160, 40), "RGB"),
    "tall": ((40, 100), "RGB"),
    "smaller": ((24, 17), "RGB"),
    "as trained": ((32, 32), "RGB"),
    "grey": ((96, 40), "L"),
    "palette": ((96, 40), "P"),
    "transparent": ((96, 40), "RGBA"),
    "on its side": ((96, 40), "RGB", 6),
    "mirrored": ((96, 41), "RGB", 2),
}


@pytest.fixture
def shown_modules(tmp_path, monkeypatch):
    """The folder of a user who follows docs/deploy.md: `picture.py` is in it."""
    (tmp_path / "picture.py").write_text(block("python", "def read_pixels"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "picture", raising=False)
    return tmp_path


def predicted(cnsn, file: Path, picture: Path) -> tuple[str, dict[str, float]]:
    """The class that `cnsn predict` says, and the probabilities of all."""
    (row,) = json.loads(cnsn("predict", file, picture, "--json").out)["images"]
    shares = {guess["class_name"]: guess["probability"] for guess in row["classes"]}
    return row["classes"][0]["class_name"], shares


def assert_same(logits: object, classes: list[str], shares: dict[str, float]) -> None:
    found = torch.as_tensor(np.asarray(logits)).double().reshape(-1).softmax(0).tolist()
    assert dict(zip(classes, found, strict=True)) == pytest.approx(shares, abs=1e-4)


@pytest.mark.parametrize("kind", PHOTOS)
def test_the_pixels_of_the_docs_are_those_of_cnsn(shown_modules, kind):
    path = photo(shown_modules / "picture.png", *PHOTOS[kind])
    names: dict[str, Any] = {}
    exec(block("python", "def read_pixels"), names)
    for channels, size, crop_pct in ((3, 32, 1), (1, 20, 1), (3, 32, 0.8)):
        expected = to_pixels(read_image(str(path)), size, channels, crop_pct)[None]
        found = names["read_pixels"](path, channels, size, crop_pct)
        assert found.flags.c_contiguous
        assert torch.equal(torch.tensor(found), expected)


@pytest.mark.parametrize("kind", ["wide", "on its side"])
def test_exported_files_answer_as_predict(checkpoint, cnsn, shown_modules, capsys, kind):
    """Each example for a runtime, on pictures that must be cut and turned, says what `cnsn predict` says."""
    picture = photo(shown_modules / "picture.png", *PHOTOS[kind])
    for to in ("onnx", "pt2"):
        export(checkpoint, to, shown_modules / f"small.{to}")
    expected, shares = predicted(cnsn, checkpoint, picture)
    for containing in ("import onnxruntime", "network = torch.export.load"):
        names: dict[str, Any] = {}
        exec(block("python", containing), names)
        assert capsys.readouterr().out.strip() == expected
        assert_same(names["logits"].tolist(), names["classes"], shares)


def test_a_file_with_the_preprocessing_inside_takes_the_pixels(checkpoint, cnsn, shown_modules):
    picture = photo(shown_modules / "picture.png", *PHOTOS["wide"])
    export(checkpoint, "onnx", shown_modules / "small.onnx", with_preprocess=True)
    names: dict[str, Any] = {}
    exec(block("python", "def read_pixels"), names)
    session = onnxruntime.InferenceSession("small.onnx")
    (logits,) = session.run(None, {"images": names["read_pixels"](picture, 3, 32)})
    assert_same(logits, ["bright", "dark"], predicted(cnsn, checkpoint, picture)[1])


def test_openvino_answers_as_predict(checkpoint, cnsn, shown_modules, capsys):
    pytest.importorskip("openvino")
    export(checkpoint, "onnx", shown_modules / "small.onnx")
    picture = photo(shown_modules / "picture.png", *PHOTOS["wide"])
    expected, shares = predicted(cnsn, checkpoint, picture)
    names: dict[str, Any] = {}
    exec(block("python", "import openvino"), names)
    assert capsys.readouterr().out.strip() == expected
    assert_same(names["logits"], names["classes"], shares)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # it uses what Python deprecates
def test_executorch_answers_as_predict(checkpoint, cnsn, shown_modules, capsys):
    pytest.importorskip("executorch.exir")
    pytest.importorskip("executorch.runtime")
    export(checkpoint, "pt2", shown_modules / "small.pt2")
    picture = photo(shown_modules / "picture.png", *PHOTOS["wide"])
    expected, shares = predicted(cnsn, checkpoint, picture)
    exec(block("python", "to_edge_transform_and_lower"), {})
    names: dict[str, Any] = {}
    exec(block("python", "from executorch.runtime"), names)
    assert capsys.readouterr().out.strip() == expected
    assert_same(names["logits"], names["classes"], shares)


TESTED = (
    "cnsn_cli.dry_run", "def watch", "cnsn_cli.predict", "cnsn_cli.evaluate", "def read_pixels",
    "import onnxruntime", "network = torch.export.load",
    "to_edge_transform_and_lower", "from executorch.runtime", "import openvino", "def twins", "def plain",
    "def notes", "recipe, search",
)  # fmt: skip


def test_no_example_is_without_a_test():
    """Whoever adds an example adds a test that runs it, and what picks it out to TESTED."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
    shown = re.findall(r"^```python\n(.*?)^```", "".join(page.read_text() for page in pages), re.M | re.S)
    assert sorted(shown) == sorted(block("python", words) for words in TESTED)


def test_a_model_card_shows_code_that_runs(checkpoint, cnsn, shown_modules, capsys):
    picture = photo(shown_modules / "picture.png", *PHOTOS["wide"])
    expected, _ = predicted(cnsn, checkpoint, picture)
    assert cnsn("card", checkpoint, "-o", shown_modules / "upload").code == 0
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (shown_modules / "upload/README.md").read_text(), re.M | re.S
    )
    exec(code.replace("model.safetensors", "upload/model.safetensors"), {})
    assert capsys.readouterr().out.strip() == expected


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


def test_the_tracker_of_ones_own(distribution, image_folder, tmp_path, quick):
    """The package of docs/trackers.md, in twelve lines, notes the accuracy of every epoch."""
    package, source = tomllib.loads(block("toml", "my-trackers")), block("python", "def notes")
    assert sum(map(bool, source.splitlines())) <= 12
    group, entry_points = next(iter(package["project"]["entry-points"].items()))
    distribution(package["project"]["name"], {"my_trackers": source}, entry_points, group)
    run = train(TINY, (1,), str(image_folder), quick, tmp_path / "run", track=("notes",))
    picture = tmp_path / "run" / "plot.png"
    assert picture.exists()
    noted = (tmp_path / "run" / "notes.txt").read_text()
    assert noted == f"1 {run.models[0].accuracy}\ndrawn in {picture}\n"


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
