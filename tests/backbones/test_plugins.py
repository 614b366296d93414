"""Plug-ins that the user names: functions in modules, files, and a package that pip installs."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from cnsn_cli.backbones import plugins, registry
from cnsn_cli.deploy.detach import detach
from cnsn_cli.files.checkpoint import load
from cnsn_cli.training.run import train
from tests.commands.test_cli import one_line
from tests.conftest import lively, rewrite, saved

ROOT = Path(__file__).parents[2]
NETS = """
import os
from os import system
from torch import nn

def conv(channels, out):
    return nn.Sequential(nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU())

def plain(num_classes, depth=3):
    convs = [conv(3 if i == 0 else 4, 4) for i in range(depth)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

class Choosy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.linear = conv(3, 4), nn.Linear(4, num_classes)

    def forward(self, images):
        if images.mean() > 0:
            images = -images
        return self.linear(self.conv(images).mean((2, 3)))

def stubborn(num_classes):
    raise RuntimeError("out of\\nideas")

def number(num_classes):
    return 5

def remove(path):
    open(path, "w").close()
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A file of networks that is not named as a plug-in yet."""
    monkeypatch.setattr(plugins, "_named", set())
    monkeypatch.delitem(sys.modules, "my_file", raising=False)
    path = tmp_path / "my_file.py"
    path.write_text(NETS)
    yield path
    sys.modules.pop("my_file", None)


def forget(monkeypatch):
    """Forget all named plug-ins, as a new process does."""
    monkeypatch.setattr(plugins, "_named", set())
    sys.modules.pop("my_file", None)


def test_a_file_from_training_to_export(cnsn, nets, monkeypatch, image_folder, tmp_path):
    """Commands that build the network need --plugin again; `info` and plain `detach` do not."""
    run, small = tmp_path / "run", tmp_path / "small.safetensors"
    words = ("--data", image_folder, "--recipe", "quick", "--epochs", 2, "--batch-size", 8, "--out", run)
    trained = cnsn(
        "train", "--plugin", nets, "--arch", "my_file:plain:depth=4", "--exits", 2, *words, "--json"
    )
    assert trained.code == 0, trained.err
    best = run / "best.safetensors"
    forget(monkeypatch)
    assert cnsn("detach", best, "--submodel", 0, "-o", small).code == 0
    assert "my_file:plain:depth=4 (module my_file)" in cnsn("info", small).out
    commands = [
        ("eval", small),
        ("mac", small),
        ("predict", small, image_folder / "test" / "dark"),
        ("bench", small, "--rounds", 1),
        ("export", small, "--to", "pt2", "-o", tmp_path / "small.pt2"),
        ("detach", best, "--submodel", 0, "--fold-bn", "-o", tmp_path / "folded.safetensors"),
        ("train", "--resume", run, "--epochs", 3, "--override"),
        ("archs", "my_file:plain"),
    ]
    for command in commands:
        forget(monkeypatch)
        message = one_line(cnsn(*command)) if command[0] != "archs" else cnsn(*command).err
        assert "--plugin" in message, (command, message)
        told = cnsn(*command, "--plugin", nets)
        assert told.code == 0, (command, told.err)
    (model,) = json.loads(cnsn("eval", small, "--plugin", nets, "--json").out)["models"]
    assert model["accuracy"] == json.loads(trained.out)["models"][1]["accuracy"]


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("my_file:stubborn", "cannot build 'my_file:stubborn' of module my_file: out of ideas"),
        (
            "my_file:number",
            "plug-in 'my_file:number' of module my_file returned int, not a Backbone or a torch",
        ),
        ("my_file:Choosy", "torch.fx cannot trace Choosy, at my_file.py line 19: symbolically traced"),
        (
            "my_file:remove:path='x'",
            "no function my_file:remove that takes num_classes: choose from my_file:Ch",
        ),
        ("my_file:system:command='x'", "no function my_file:system that takes num_classes: choose from"),
        (
            "my_file:plain:depth=1",
            "no sub-model can be detached from Sequential: a cut goes between two conv l",
        ),
        ("my_file:plain:width=1", "my_file:plain has no option 'width': choose from depth"),
        ("nowhere:plain", "no architecture or module 'nowhere': install it, or give --plugin with the file"),
        ("os:system", "plug-in 'os:system' of module os takes no num_classes"),
        ("torchvision:resnet5O", "torchvision has no 'resnet5O': did you mean resnet50"),
        ("torchvison:resnet50", "no architecture or module 'torchvison': did you mean torchvision?"),
        ("timm:resnet5O", "timm has no 'resnet5O': did you mean"),
        (
            "torchvision:vit_b_16",
            "no sub-model can be detached from VisionTransformer: a cut goes between two",
        ),
    ],
)
def test_bad_input_ends_in_one_line(cnsn, nets, arch, message):
    found = one_line(cnsn("mac", "--plugin", nets, "--arch", arch))
    assert message in found
    if "cannot trace" in found:
        assert "write a plug-in for it (docs/plugins.md)" in found


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nothing.py", "cannot run plug-in nothing.py: [Errno 2] No such file"),
        ("nothing", "no plug-in 'nothing': give a file that ends in .py, or package.module:function"),
        ("nowhere:plain", "no module 'nowhere': install it, or give --plugin with the file that contains it"),
        ("broken.py", "cannot run plug-in broken.py: name 'oops' is not defined"),
        ("json.py", "a module 'json' is in use already: give json.py another name"),
    ],
)
def test_plugins_that_are_none(cnsn, nets, monkeypatch, named, message):
    monkeypatch.chdir(nets.parent)
    for name in ("broken", "json"):
        Path(f"{name}.py").write_text("oops\n")
    assert one_line(cnsn("mac", "--plugin", named, "--arch", "vgg11")).startswith(message)


def test_without_timm(cnsn, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = one_line(cnsn("mac", "--arch", "timm:resnet18"))
    assert message.endswith("timm is not installed: pip install 'cnsn-cli[timm]'")


ODD = """
import torch
from torch import nn

class Flatten(nn.Module):
    def forward(self, features):
        return features.view(features.size(0), -1)  # fails if features are channels last in memory

class Through(nn.Module):
    def forward(self, features):
        return features.view(-1).view(features.shape)

class Noisy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.through, self.flatten, self.linear = Through(), Flatten(), nn.Linear(64, num_classes)
        self.noise = torch.randn(4)

    def forward(self, images):
        features = self.second(self.through(self.first(images) + self.noise[:, None, None]))
        return self.linear(self.flatten(features))

def odd(num_classes):
    return Noisy(num_classes)
"""


def test_a_network_that_views_its_features_and_draws_a_constant(distribution, image_folder, tmp_path, quick):
    """A file holds the constant, because another process would draw another value."""
    distribution("odd", {"odd_nets": ODD}, {"odd": "odd_nets:odd"})
    path = train("odd", (1,), str(image_folder), quick, tmp_path / "run").folder / "best.safetensors"
    detach(path, "base", tmp_path / "base.safetensors")
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(load(tmp_path / "base.safetensors")(images), load(path).models()[0](images))


def test_a_function_of_a_module(cnsn, distribution, monkeypatch, tmp_path):
    """A name on the command line makes the function known; the same name in a model file does not."""
    monkeypatch.setattr(plugins, "_named", set())
    distribution("other", {"my_module": NETS}, {})
    assert cnsn("mac", "--arch", "my_module:plain").code == 0
    path = saved(tmp_path / "x.safetensors", lively("my_module:plain", (1,)), "my_module:plain")
    forget(monkeypatch)
    assert "give --plugin my_module:plain" in one_line(cnsn("mac", path))
    assert cnsn("mac", path, "--plugin", "my_module:plain").code == 0
    rewrite(path, lambda content, metadata: metadata.update(arch="my_module:number"))
    assert "no function my_module:number" in one_line(cnsn("mac", path, "--plugin", "my_module:plain"))


def test_a_name_that_looks_like_another_and_a_network_that_is_not_new(cnsn, monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "_named", set())
    monkeypatch.delitem(sys.modules, "resnets", raising=False)
    path = tmp_path / "resnets.py"
    path.write_text(f"{NETS}\nfrom functools import cache\n\nkept = cache(plain)\n")
    assert cnsn("mac", "--plugin", path, "--arch", "resnets:kept").code == 0
    again = one_line(cnsn("mac", "--plugin", path, "--arch", "resnets:kept"))
    assert again.endswith("it returned the same network again: let it build a new one each time")
    file = saved(tmp_path / "x.safetensors", lively("resnets:plain", (1,)), "resnets:plain")
    monkeypatch.setattr(plugins, "_named", set())
    message = one_line(cnsn("eval", file))
    assert "resnets:plain is no installed plug-in (did you mean resnet" in message
    assert message.endswith("give --plugin resnets:plain, or --plugin with its file")


def test_a_module_in_a_package_that_raises(cnsn, nets, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sick").mkdir()
    (tmp_path / "sick" / "__init__.py").write_text("raise RuntimeError('no good')")
    message = one_line(cnsn("mac", "--arch", "sick.inside:net"))
    assert message == "cannot import plug-in 'sick.inside:net' of module sick.inside: no good"


def test_a_file_cannot_call_what_was_not_meant_to_build(nets, checkpoint, tmp_path):
    """A model file calls neither imports of the plug-in nor functions that do not build networks."""
    registry.plugins.use_plugin(nets)
    victim, path = tmp_path / "victim", tmp_path / "x.safetensors"
    victim.write_text("mine")
    for arch in (
        f"my_file:remove:path='{victim}'",
        f"my_file:system:command='rm {victim}'",
        "my_file:os.abort",
    ):
        path.write_bytes(checkpoint.read_bytes())
        rewrite(path, lambda content, metadata, arch=arch: metadata.update(arch=arch))
        with pytest.raises(registry.ArchitectureError):
            load(path)
    assert victim.read_text() == "mine"


def test_the_example_package(image_folder, tmp_path):
    """pip installs the package into a new environment, which uses the libraries of this environment."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    )
    site = Path(purelib.decode().strip())
    folders = [folder for folder in sys.path if folder.endswith("site-packages")]
    # `site` also reads .pth files in these folders, for example of an editable install.
    lines = [f"import site; site.addsitedir({folder!r})" for folder in folders]
    (site / "borrowed.pth").write_text("\n".join(lines))
    source = shutil.copytree(
        ROOT / "examples" / "my-nets", tmp_path / "source"
    )  # building leaves files there
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*pip, "--no-build-isolation", source], check=True, env=environment)

    listed = subprocess.check_output([python, "-m", "cnsn_cli", "archs", "--json"], cwd=tmp_path)
    providers = {row["name"]: row["provider"] for row in json.loads(listed)["architectures"]}
    assert providers["plain"] == providers["twins"] == "my-nets 1.0"
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run([python, "-c", USE, image_folder], check=True, cwd=tmp_path, env=environment)


USE = """
import sys, torch, cnsn_cli
recipe = cnsn_cli.load_recipe("quick", {"epochs": 1, "batch_size": 8})
run = cnsn_cli.train("twins", (1,), sys.argv[1], recipe, "run")
cnsn_cli.detach("run/best.safetensors", "submodel0", "small.safetensors")
small, whole = cnsn_cli.load("small.safetensors"), cnsn_cli.load("run/best.safetensors")
images = torch.randn(4, 3, 32, 32)
assert torch.equal(small(images), whole.model("submodel0")(images))
assert [cost.drops for cost in cnsn_cli.count_macs("plain:depth=8")] == list(range(8))
"""
