"""Tiny files to break: whole networks, without and with widths, detached models, the state of a run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from cnsn_cli.backbones import registry
from cnsn_cli.deploy.detach import detach
from cnsn_cli.evaluation.accuracy import evaluate_file
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import train
from tests.conftest import install

TINY_PLUGIN = """
from torch import nn
from cnsn_cli import Backbone

def tiny(num_classes, in_channels, image_size, width=2, depth=2):
    units = nn.Sequential()
    for index in range(depth):
        units.append(nn.Sequential(nn.Conv2d(in_channels if index == 0 else width, width, 3, 2, 1),
                                   nn.BatchNorm2d(width), nn.ReLU()))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1),
                         nn.Linear(width, num_classes))
    return Backbone(units, head, (1,) * depth)

tiny.narrows = "width"
"""


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Files by kind, in a folder of their own. All have the architecture `tiny`, for images of 8 x 8."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        install(folder, patch, "tinynet", {"tinynet": TINY_PLUGIN}, {"tiny": "tinynet:tiny"})
        known = registry.architectures()
        patch.setattr(registry, "architectures", lambda: known)  # the scan takes longer than loading a file
        yield make_files(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    """Every test runs on one thread, because a run is resumed with as many threads as it had before."""
    with one_thread():
        yield


def make_files(folder: Path) -> dict[str, Path]:
    data, run = folder / "data", folder / "run"
    for split in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            (data / split / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8), (100 * number, 20 * index, 50)).save(
                    data / split / name / f"{index}.png"
                )
    with one_thread():
        recipe = load_recipe("quick", {"epochs": 1, "batch_size": 4})
        train("tiny", (1,), str(data), recipe, run)
        train("tiny", (1, "@0.5", "1@0.5"), str(data), recipe, folder / "widths")
    files = {"network": run / "best.safetensors", "state": run / "state.safetensors"}
    files["widths"] = folder / "widths" / "best.safetensors"
    files |= {"detached": run / "detached.safetensors", "folded": run / "folded.safetensors"}
    detach(files["network"], "0", files["detached"])
    detach(files["network"], "0", files["folded"], fold_bn=True)
    evaluate_file(files["network"], device="cpu")  # imports everything, so that forked children need not
    return files


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that prints the numbers of a test and its duration; `make faults` shows them."""
    start = time.perf_counter()
    return lambda text: print(f"\n{request.node.name}: {text}, {time.perf_counter() - start:.0f} s")
