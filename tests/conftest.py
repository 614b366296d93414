"""Helpers that many tests share: a tiny network, a tiny data set, the command line, made-up distributions."""

import json
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.narrowing import narrow_backbones
from cnsn_cli.choices import BatchNormMode
from cnsn_cli.exits import read_exits
from cnsn_cli.files.checkpoint import save
from cnsn_cli.main import main
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training import resume_state
from cnsn_cli.training.description import describe
from cnsn_cli.training.recipe import Recipe, load_recipe
from cnsn_cli.training.run import train
from tests.hub import Repository

STAGE = re.compile(r"^(\w.*): [\d,.]+ s\n", re.M)
TINY = "vgg11:width=0.0625"  # 4 to 32 channels


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA here")


@dataclass(frozen=True)
class Result:
    """The exit code of a command, and the text that it printed to stdout and stderr.

    `stages` are the stages whose lines, such as `reading 64 images: 0.1 s`, are left out of `err`.
    """

    code: int
    out: str
    err: str
    stages: tuple[str, ...] = ()


@pytest.fixture
def cnsn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["cnsn", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        stages = tuple(STAGE.findall(captured.err))
        return Result(code, captured.out, STAGE.sub("", captured.err), stages)

    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness: 32 training and 8 test images each, of 32 x 32 pixels."""
    root = tmp_path_factory.mktemp("folder")
    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", 32), ("test", 8)):
        for name, low in (("bright", 150), ("dark", 20)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(low, low + 80, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="session")
def quick() -> Recipe:
    return load_recipe("quick", {"epochs": 1, "lr": 0.02, "batch_size": 8})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, quick: Recipe) -> Path:
    """A tiny trained VGG with exits 1 and 4."""
    folder = tmp_path_factory.mktemp("run")
    train(TINY, (1, 4), str(image_folder), quick, folder, precision="fp32")
    return folder / "best.safetensors"


def built(arch: str, words: tuple[int | str, ...], task: Task, bn: BatchNormMode = "private") -> Cnsn:
    """A new network, drawn with seed 0."""
    torch.manual_seed(0)
    found, exits = registry.find(arch), read_exits(words)
    wide = found.build(task)
    return Cnsn(wide, exits, task, bn, narrow=narrow_backbones(found, wide, exits, task))


def lively(arch: str, exits: tuple[int | str, ...]) -> Cnsn:
    """A network for 7 classes, whose BN parameters and statistics look as after training."""
    network = built(arch, exits, Task.plain(classes=7))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(3):
        network(torch.randn(8, 3, 32, 32) * 2 + 0.5)
    return network.eval()


def saved(path: Path, network: Cnsn, arch: str, data: str = "digits") -> Path:
    """Write `network` into a file as training would, and return the path."""
    save(path, network, describe(network, registry.find(arch), data, load_recipe("quick")))
    return path


def write_unchecked(path: Path, tensors: dict[str, torch.Tensor], state: resume_state.State) -> None:
    """Write a state that cnsn would not write, because it could not read it again."""
    with patch.object(resume_state, "read_state", lambda path: None):
        resume_state.write_state(path, tensors, state)


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """The repository `user/repo` of the Hub, empty, in a cache of its own; there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Repository(tmp_path / "cache", "user/repo")


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`install`, until the test ends."""
    return partial(install, tmp_path, monkeypatch)


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    modules: dict[str, str],
    entry_points: dict[str, str],
    group: str = "cnsn.architectures",
) -> None:
    """Install a made-up distribution: source of modules by name, and entry points of `group` by name."""
    site = folder / f"site-{name}"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(site)


def broken_compiler(message: str) -> Callable[[object], Callable[[object], None]]:
    """Stands for torch.compile: what it returns raises a RuntimeError with `message`."""

    def forward(images: object) -> None:
        raise RuntimeError(message)

    return lambda network: forward


def rewrite(path: Path, change) -> None:
    """Pass the JSON header of a file through `change`."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    content = json.loads(data[8 : 8 + length])
    meta = json.loads(content["__metadata__"]["cnsn"])
    change(content, meta)
    if "__metadata__" in content and "cnsn" in content["__metadata__"]:
        content["__metadata__"]["cnsn"] = json.dumps(meta)
    raw = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
