"""What the machine lacks, or a network cannot do, ends a command in one line before work is lost."""

import pytest
import torch
from PIL import Image, ImageFile

from cnsn_cli import distributed
from cnsn_cli.backbones import registry
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.errors import TrainingError, lack
from cnsn_cli.evaluation import accuracy
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.recalibration import calibration_images
from cnsn_cli.task import Task
from cnsn_cli.training import step
from cnsn_cli.training.trainer import check_norms
from tests.conftest import TINY

SMALL = "resnet18:width=0.0625"  # at 8 x 8 pixels, its last convs return one value a channel


def one_line(result) -> str:
    assert result.code == 1
    *_, line = result.err.splitlines()
    assert "Traceback" not in result.err
    return line


@pytest.mark.parametrize("exits", ["", "5"])
def test_a_batch_of_one_image_is_refused_before_the_first_step(cnsn, image_folder, tmp_path, exits):
    words = ("--exits", exits, "--data", image_folder, "--recipe", "quick", "--out", tmp_path / "run")
    result = cnsn("train", "--arch", SMALL, *words, "--image-size", 8, "--batch-size", 1, "--epochs", 1)
    assert "a batch of size 1 is too small (Expected more than 1 value per channel" in one_line(result)
    assert result.err.endswith(": give --batch-size at least 2\n")
    assert not (tmp_path / "run").exists()


def test_a_share_of_one_image_is_refused_too(monkeypatch):
    task = Task.plain(image_size=8)
    network = Cnsn(registry.find(SMALL).build(task), (5,), task)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    monkeypatch.setattr(distributed, "size", lambda: 4)
    with pytest.raises(TrainingError, match=r"share of each of 4 processes .* --batch-size at least 8"):
        check_norms(network, 1)
    check_norms(network, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_one_image_is_enough_for_norms_of_several_values():
    check_norms(Cnsn(registry.find(TINY).build(Task.plain()), (1,), Task.plain()), 1)


@pytest.mark.parametrize(("images", "sizes"), [(1, [1]), (2, [2]), (3, [3]), (5, [3, 2])])
def test_no_batch_of_a_recalibration_has_one_image_if_there_are_two(images, sizes):
    """At 1,024 pixels a side, evaluation takes one image at a time."""
    pixels = torch.zeros(images, 1, 1024, 1024, dtype=torch.uint8)
    task = Task.plain(2, 1024, 1)
    model = Cnsn(registry.find(TINY).build(task), (), task).base
    batches = calibration_images(model, MemorySplit(pixels, torch.zeros(images, dtype=torch.int64)), 9)
    assert [len(batch) for batch in batches] == sizes


@pytest.mark.parametrize(
    ("verb", "place", "name"), [("read", ImageFile.ImageFile, "load"), ("resize", Image.Image, "resize")]
)
def test_a_picture_that_does_not_fit_into_memory(cnsn, checkpoint, tmp_path, monkeypatch, verb, place, name):
    def full(*arguments):
        raise MemoryError

    path = tmp_path / "wide.png"
    Image.new("RGB", (2000, 40)).save(path)
    monkeypatch.setattr(place, name, full)
    line = one_line(cnsn("predict", checkpoint, path))
    problem = "its 2,000 x 40 pixels do not fit into memory: shrink it, or close other programs"
    assert line == f"cnsn: cannot {verb} image {path}: {problem}"


# The texts of torch 2.10 on the CPU and on CUDA, and of CPython.
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
)
LACKS = [
    (RuntimeError(f"{CPU}allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"),
     "memory is full, 4000000000000 bytes more are needed: use smaller batches"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total"),
     "the memory of the GPU is full, 20.00 GiB more are needed"),
    (MemoryError(), "memory is full: use smaller batches, images or networks"),
    (RecursionError("maximum recursion depth exceeded"), "something is nested more deeply than Python can"),
    (RuntimeError("can't start new thread"), "the system allows no more threads"),
    (RuntimeError("pool_backward_cuda does not have a deterministic implementation, but you set"),
     "pool_backward_cuda cannot be repeated bit for bit on a GPU: leave out --deterministic"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message"), LACKS, ids=lambda value: type(value).__name__)
def test_what_the_machine_lacks_ends_eval_and_training(
    cnsn, checkpoint, image_folder, tmp_path, monkeypatch, error, message
):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(accuracy, "open_file", fail)
    assert one_line(cnsn("eval", checkpoint)).startswith(f"cnsn: {message}")
    monkeypatch.setattr(step, "forward_pass", fail)
    words = ("--exits", "", "--data", image_folder, "--recipe", "quick", "--batch-size", 8, "--epochs", 1)
    line = one_line(cnsn("train", "--arch", TINY, *words, "--out", tmp_path / "run"))
    assert line.startswith(f"cnsn: {message}")
    assert line.endswith(f"to go on: cnsn train --resume {tmp_path / 'run'}")


def test_torch_says_in_these_words_that_memory_is_full():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert lack(caught.value).startswith(f"memory is full, {4 * 2**50} bytes more are needed")


def test_faults_of_the_program_keep_their_traceback(cnsn, checkpoint, monkeypatch):
    monkeypatch.setattr(accuracy, "open_file", lambda *some: [][0])
    with pytest.raises(IndexError):
        cnsn("eval", checkpoint)
