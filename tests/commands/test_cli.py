"""The command line: from the words that users type to the lines that they read."""

import json
import re
import subprocess
import sys

import pytest

from cnsn_cli.commands.output import printable
from tests.conftest import TINY


def one_line(result) -> str:
    """The error message of a command that failed: its only line, on stderr."""
    assert result.code == 1
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("cnsn: ")
    return lines[0].removeprefix("cnsn: ")


def test_mac_prints_the_figures_of_the_paper(cnsn):
    result = cnsn("mac", "--arch", "vgg16", "--exits", "2,7", "--json")
    models = json.loads(result.out)["models"]
    assert [model["name"] for model in models] == ["base", "submodel0", "submodel1"]
    assert [model["drops"] for model in models] == [0, 2, 7]
    assert [model["macs"] for model in models] == [313201664, 273880064, 123474944]
    assert [f"{model['operations'] / 1e9:.3f}" for model in models] == ["0.314", "0.275", "0.124"]
    assert set(models[0]) == {"name", "drops", "width", "macs", "operations", "parameters", "bytes"}


def test_mac_without_exits_lists_every_detach_point(cnsn):
    result = cnsn("mac", "--arch", "resnet18:width=0.25", "--layers")
    assert re.findall(r"^ (drop\d+) ", result.out, re.M) == [f"drop{k}" for k in range(1, 16, 2)]
    assert "units.8" in result.out
    assert "drop15.step_down" in result.out


def test_mac_takes_the_size_of_the_images(cnsn):
    result = cnsn("mac", "--arch", TINY, "--image-size", 64, "--classes", 3, "--in-channels", 1, "--json")
    # Convs 1-4-8-16-16-32-32-32-32 with bias and BN, and 32 -> 3.
    weights = 9 * (1 * 4 + 4 * 8 + 8 * 16 + 16 * 16 + 16 * 32 + 3 * 32 * 32)
    channels = 4 + 8 + 16 + 16 + 4 * 32
    assert json.loads(result.out)["models"][0]["parameters"] == weights + 3 * channels + 32 * 3 + 3


def test_the_whole_way(cnsn, image_folder, tmp_path):
    run = tmp_path / "run"
    words = ("--arch", TINY, "--exits", "1,4", "--data", image_folder, "--recipe", "quick")
    trained = cnsn("train", *words, "--epochs", 2, "--batch-size", 8, "--lr", 0.02, "--out", run, "--json")
    assert trained.code == 0, trained.err
    content = json.loads(trained.out)
    assert content["selected_on"] == "test"
    assert "as the paper did" in trained.err
    assert len(re.findall(r"^epoch \d/2  base .* submodel1 .* images/s", trained.err, re.M)) == 2

    whole = json.loads(cnsn("eval", run / "best.safetensors", "--json").out)
    fields = ("name", "drops", "width", "macs", "operations", "parameters", "bytes", "accuracy", "loss")
    assert [set(model) for model in whole["models"]] == [set(fields)] * 3
    assert whole["models"] == [{field: m[field] for field in fields} for m in content["models"]]

    small = tmp_path / "small.safetensors"
    detached = cnsn("detach", run / "best.safetensors", "--submodel", 1, "-o", small)
    assert detached.code == 0, detached.err
    assert f"written: {small}" in detached.out
    alone = json.loads(cnsn("eval", small, "--json").out)
    assert alone["models"] == whole["models"][2:]
    counted = json.loads(cnsn("mac", small, "--json").out)
    assert counted["models"][0]["macs"] == whole["models"][2]["macs"]


def test_eval_per_class(cnsn, checkpoint):
    result = cnsn("eval", checkpoint, "--per-class", "--json")
    rows = json.loads(result.out)["models"][0]["classes"]
    assert [(row["class_name"], row["images"]) for row in rows] == [("bright", 8), ("dark", 8)]
    assert "bright" in cnsn("eval", checkpoint, "--per-class").out


def test_detach_by_budget_and_all(cnsn, checkpoint, tmp_path):
    models = json.loads(cnsn("mac", checkpoint, "--json").out)["models"]
    budget = f"{models[2]['macs'] / 1e6}M"
    result = cnsn("detach", checkpoint, "--max-macs", budget, "-o", tmp_path / "s.safetensors", "--json")
    assert json.loads(result.out)["models"][0]["name"] == "submodel1"
    result = cnsn("detach", checkpoint, "--all", "-o", tmp_path / "all", "--json")
    assert [model["name"] for model in json.loads(result.out)["models"]] == ["base", "submodel0", "submodel1"]


def test_info(cnsn, checkpoint):
    out = cnsn("info", checkpoint).out
    for part in (TINY, "cnsn-cli", "2: bright, dark", "private statistics", "epoch 1, on the test images"):
        assert part in out
    assert json.loads(cnsn("info", checkpoint, "--json").out)["kind"] == "network"


def test_archs(cnsn):
    assert re.search(r"vgg16 +cnsn-cli", cnsn("archs").out)
    listed = json.loads(cnsn("archs", "--json").out)["architectures"]
    assert {"vgg16", "torchvision", "timm"} <= {architecture["name"] for architecture in listed}
    shown = json.loads(cnsn("archs", "resnet18", "--json").out)
    assert shown["options"] == {"width": 1.0}
    assert [point["drops"] for point in shown["detach_points"]] == list(range(1, 16, 2))
    assert "64 x 32 x 32" in cnsn("archs", "resnet18").out


def test_archs_counts_macs_at_each_detach_point(cnsn):
    """The figures that DESIGN counted by hand for VGG-16."""
    shown = json.loads(cnsn("archs", "vgg16", "--json").out)
    macs = {point["drops"]: point["macs"] for point in shown["detach_points"]}
    assert (shown["macs"], macs[2], macs[7]) == (313_201_664, 273_880_064, 123_474_944)
    out = cnsn("archs", "vgg16").out
    assert "the base-model has 313.2 M MACs" in out
    assert re.search(r"7 +7 +256 x 4 x 4 +123.5 M", out)


def test_archs_says_why(cnsn):
    out = cnsn("archs", "torchvision:resnet18", "--why").out
    assert out.startswith("torchvision:resnet18, provided by cnsn-cli ")
    assert re.search(r"units.1, layer1.0.relu +3 +yes", out)
    assert re.search(r"layer1.0.conv1 +no: later layers need maxpool and layer1_0_conv1", out)
    borders = json.loads(cnsn("archs", "torchvision:resnet18", "--why", "--json").out)["borders"]
    assert borders[-1] == {"after": "units.8, avgpool", "drops": 17, "reason": "no conv layer follows"}


def test_version(cnsn):
    import cnsn_cli

    assert cnsn("--version").out == f"cnsn {cnsn_cli.__version__}\n"


TRAIN = ("train", "--data", "digits", "--recipe", "quick", "--out", "never")
TRAIN_TINY = (*TRAIN, "--arch", TINY, "--exits", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--arch", "vgg-16", "--exits", "2"), "unknown architecture 'vgg-16': did you mean vgg16, "),
        (
            (*TRAIN, "--arch", "resnet18:width=0.1", "--exits", "4"),
            "4 is no detach point: choose from 1, 3, 5, 7, 9, 11, 13, 15",
        ),
        ((*TRAIN, "--arch", TINY, "--exits", "4,1"), "exits must ascend without repeats, not 4,1: use 1,4"),
        ((*TRAIN, "--arch", TINY, "--exits", "1,1"), "exits must ascend without repeats, not 1,1: use 1"),
        (
            (*TRAIN, "--arch", TINY, "--exits", "1", "--image-size", "16"),
            "image size 16 is too small: the smal",
        ),
        (
            (*TRAIN, "--arch", TINY, "--exits", "1", "--batch-size", "0"),
            "recipe 'quick': batch_size = 0: input sh",
        ),
        (
            (*TRAIN, "--arch", TINY, "--exits", "1", "--batch-size", "2000"),
            "a batch of 2000 is more than the 1437",
        ),
        ((*TRAIN_TINY, "--in-channels", "2"), "images are read with 1 or 3 channels, not 2"),
        ((*TRAIN_TINY, "--device", "tpu"), "no device 'tpu' here: choose auto, "),
        ((*TRAIN_TINY, "--classes", "9"), "digits has 10 classes, not 9"),
        (
            (*TRAIN, "--arch", TINY, "--exits", "1", "--recipe", "best?"),
            "no recipe 'best?': choose best, fast, finetune, paper, photos, quick or",
        ),
        (
            ("train", "--arch", TINY, "--exits", "1", "--data", "nowhere"),
            "no data set or folder 'nowhere': choose",
        ),
        (("mac", "--arch", "vgg16", "--exits", "13"), "13 is no detach point: choose from 1, 2, 3, "),
        (
            ("mac", "--arch", "vgg16", "--image-size", "31"),
            "image size 31 is too small: the smallest size that f",
        ),
        (("eval", "nothing.safetensors"), "cannot read nothing.safetensors: No such file or directory"),
        (("info", __file__), f"{__file__} is no safetensors file: it starts with a header length"),
        (("archs", "vggg"), "unknown architecture 'vggg': did you mean vgg"),
    ],
)
def test_bad_input_ends_in_one_line(cnsn, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert one_line(cnsn(*words)).startswith(message)
    assert not list(tmp_path.iterdir())


def test_bad_input_for_detach(cnsn, checkpoint, tmp_path):
    target = tmp_path / "small.safetensors"
    assert "no model 'submodel9'" in one_line(cnsn("detach", checkpoint, "--submodel", 9, "-o", target))
    assert "is the checkpoint" in one_line(cnsn("detach", checkpoint, "--submodel", 1, "-o", checkpoint))
    assert "at most 1,000 MACs: sub" in one_line(cnsn("detach", checkpoint, "--max-macs", "1K", "-o", target))
    assert not target.exists()
    target.write_text("mine")
    assert "give --force" in one_line(cnsn("detach", checkpoint, "--submodel", 1, "-o", target))
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--arch", TINY, "--exits", "2,x"),
        ("train", "--arch", TINY),
        ("mac",),
        ("mac", "x.safetensors", "--image-size", "64"),
        ("mac", "--arch", TINY, "--image-size", "100000"),
        ("mac", "--arch", TINY, "--image-size", "0"),
        ("detach", "x.safetensors", "-o", "y.safetensors"),
        ("detach", "x.safetensors", "-o", "y.safetensors", "--max-macs", "many"),
        ("detach", "x.safetensors", "-o", "y.safetensors", "--max-macs", "inf"),
        ("detach", "x.safetensors", "-o", "y.safetensors", "--max-latency", "5 minutes"),
        ("detach", "x.safetensors", "-o", "y.safetensors", "--min-accuracy", "90"),
        ("detach", "x.safetensors", "-o", "y.safetensors", "--max-macs", "1M", "--all"),
        ("archs", "--why"),
        ("fly",),
    ],
)
def test_malformed_words_get_the_usage_panel(cnsn, words):
    result = cnsn(*words)
    assert result.code == 2
    assert "Usage: cnsn" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--arch", TINY, "--exits", "", "--data", "digits", "--out", ""),
        ("train", "--arch", TINY, "--exits", "", "--data", "digits", "--out="),
        ("train", "--freeze-base", "", "--exits", "1"),
        ("detach", "x.safetensors", "--all", "-o", ""),
        ("card", "x.safetensors", "-o", ""),
        ("predict", "x.safetensors", ""),
        ("info", ""),
        ("plot", "-o", "x.png", ""),
    ],
)
def test_an_empty_path_is_not_the_working_folder(cnsn, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cnsn(*words)
    assert result.code == 2
    assert "is empty: give a value" in " ".join(result.err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_a_list_may_be_empty(cnsn, image_folder, tmp_path):
    words = ("train", "--arch", TINY, "--exits", "", "--data", image_folder, "--recipe", "quick")
    words += ("--epochs", 1, "--milestones", "", "--final-scale=", "--out", tmp_path / "run")
    done = cnsn(*words)
    assert done.code == 0, done.err


def test_traceback_on_request(cnsn):
    from cnsn_cli.errors import CheckpointError

    with pytest.raises(CheckpointError):
        cnsn("--traceback", "info", "nothing.safetensors")


def test_names_cannot_steer_the_terminal(cnsn):
    assert printable("a\x1b[31mb\n") == "a\\x1b[31mb\\n"
    assert "\x1b" not in cnsn("info", "\x1b[31mred").err


def run_without_torch(words: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['cnsn', *{words!r}]\n"
        "from cnsn_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "words", [["--help"], ["archs"], ["train", "--help"], ["recipes"], ["recipes", "best"]]
)
def test_light_commands_do_not_import_torch(words):
    run_without_torch(words)


def test_detach_and_info_do_not_import_torch(checkpoint, tmp_path):
    small = tmp_path / "s.safetensors"
    run_without_torch(["detach", str(checkpoint), "--submodel", "1", "-o", str(small)])
    run_without_torch(["info", str(small)])
    assert small.exists()


def test_a_budget_is_not_rounded_down(cnsn, checkpoint, tmp_path):
    models = json.loads(cnsn("mac", checkpoint, "--json").out)["models"]
    for number, model in enumerate(models):
        words = ("--max-macs", f"{model['macs'] / 1e6:.6f}M", "-o", tmp_path / f"{number}.safetensors")
        assert cnsn("detach", checkpoint, *words).code == 0


def test_sigterm_ends_with_143_and_leaves_no_temporary_file(tmp_path):
    words = ("--arch", TINY, "--exits", "1", "--data", "digits", "--recipe", "quick", "--epochs", "500")
    command = [sys.executable, "-m", "cnsn_cli", "train", *words, "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not process.stderr.readline().startswith("epoch 1/"):
            pass
        process.terminate()
        rest = process.stderr.read()
    assert process.returncode == 143
    assert "Traceback" not in rest
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]
    from cnsn_cli.files.checkpoint import load

    assert load(tmp_path / "run" / "best.safetensors")


def test_fold_bn_from_the_command_line(cnsn, checkpoint, tmp_path):
    plain, folded = tmp_path / "plain.safetensors", tmp_path / "folded.safetensors"
    assert cnsn("detach", checkpoint, "--submodel", 0, "-o", plain).code == 0
    assert cnsn("detach", checkpoint, "--submodel", 0, "-o", folded, "--fold-bn").code == 0
    (expected,) = json.loads(cnsn("eval", plain, "--json").out)["models"]
    (found,) = json.loads(cnsn("eval", folded, "--json").out)["models"]
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert found["macs"] == expected["macs"]
    assert found["operations"] < expected["operations"]
    assert "folded into the convs" in cnsn("info", folded).out
