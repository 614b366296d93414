"""Whole runs on CUDA: resumed, with too little memory, and together with other processes."""

import socket

import pytest
import torch

from cnsn_cli import distributed
from cnsn_cli.training.metrics import Step
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.started import Started
from tests.conftest import TINY
from tests.training.test_resume import DROPOUT, assert_same_run

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("repeatable")]
ON = {"device": "cuda", "deterministic": True}
MIB = 2**20


class Stop(Exception):
    pass


@pytest.fixture
def recipe(distribution, quick):
    """A recipe that uses everything that has a state; the network "dropout" is there, too."""
    distribution("other", {"other": DROPOUT}, {"dropout": "other:dropout"})
    changes = {"epochs": 2, "crop_padding": 2, "ema": 0.8, "gradient_scale": (0.5,), "distill": "base"}
    return quick.model_copy(update=changes)


def test_a_captured_run_is_the_eager_run(recipe, image_folder, tmp_path):
    for name, capture in (("captured", True), ("eager", False)):
        train("dropout", (1,), str(image_folder), recipe, tmp_path / name, capture=capture, **ON)
    assert_same_run(tmp_path / "captured", tmp_path / "eager")


def test_a_run_stopped_inside_an_epoch_goes_on_to_the_same_bits(recipe, image_folder, tmp_path):
    seen = []

    def stop(event: object) -> None:
        seen.append(event)
        if sum(isinstance(event, Step) for event in seen) == 5:
            raise Stop

    train("dropout", (1,), str(image_folder), recipe, tmp_path / "whole", **ON)
    with pytest.raises(Stop):
        train("dropout", (1,), str(image_folder), recipe, tmp_path / "cut", save_every="1", watch=stop, **ON)
    (started,) = [event for event in seen if isinstance(event, Started)]
    assert started.captured
    torch.manual_seed(99)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("room", [16, 200], ids=["for the weights", "for a step"])
def test_too_little_memory_is_one_line_with_a_remedy(cnsn, image_folder, tmp_path, room):
    """VGG-16 has 59 MiB of weights; a step needs these, gradients and momenta, and features."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room * MIB) / total)
    words = ("--arch", "vgg16", "--exits", "2,7", "--data", image_folder, "--recipe", "quick")
    try:
        result = cnsn("train", *words, "--batch-size", 64, "--device", "cuda", "--out", tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.code == 1
    assert "Traceback" not in result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("cnsn: ")]
    assert "the memory of the GPU is full" in line
    assert "use smaller batches" in line


def test_a_layer_that_cannot_be_repeated_is_named(cnsn, image_folder, tmp_path):
    """AlexNet pools its features to 6 x 6."""
    words = ("--arch", "torchvision:alexnet", "--exits", 1, "--data", image_folder, "--image-size", 64)
    more = ("--recipe", "quick", "--device", "cuda", "--deterministic", "--out", tmp_path / "run")
    result = cnsn("train", *words, *more)
    assert result.code == 1
    assert "cnsn: adaptive_avg_pool2d_backward_cuda cannot be repeated bit for bit" in result.err


@pytest.mark.filterwarnings("ignore:Grad strides do not match")
def test_nccl_with_one_process_trains_the_same_network(image_folder, tmp_path, quick, monkeypatch):
    """As torchrun starts one of several processes, but alone."""
    train(TINY, (1, 4), str(image_folder), quick, tmp_path / "alone", capture=False, **ON)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    alone = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # no name of the machine is looked up
    for name, value in (place | alone).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "launched", lambda: True)
    train(TINY, (1, 4), str(image_folder), quick, tmp_path / "joined", capture=False, **ON)
    assert_same_run(tmp_path / "joined", tmp_path / "alone")
