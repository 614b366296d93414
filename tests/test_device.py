"""What a device computes with: switches of torch are set around the work, and set back afterwards."""

import subprocess
import sys

import pytest
import torch
from torch import backends

from cnsn_cli import device as devices
from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.device import emulates_bf16, exact_fp32, fastest_convs, slowdown_of_bf16
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.metrics import Epoch, Step
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY

CPU = torch.device("cpu")


def switches() -> tuple[object, ...]:
    return (
        backends.cudnn.benchmark, backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision,
        backends.cuda.matmul.fp32_precision,
    )  # fmt: skip


def test_steps_try_algorithms_and_evaluation_is_true_fp32(image_folder, monkeypatch):
    seen, before = {True: set(), False: set()}, switches()
    forwards = Cnsn.forward, Model.forward

    def spy(whole):
        def forward(self, images):
            seen[self.training].add(switches())
            return forwards[not whole](self, images)

        return forward

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Cnsn, "forward", spy(whole=True))
    monkeypatch.setattr(Model, "forward", spy(whole=False))
    dataset = load_dataset(str(image_folder))
    torch.manual_seed(0)
    network = Cnsn(registry.find(TINY).build(dataset.task), (1,), dataset.task)
    recipe = load_recipe("quick", {"epochs": 1, "batch_size": 16})
    trainer = Trainer(network, dataset.train, dataset.test, recipe)
    seen[True].clear()  # the blank pass before the first step
    for event in trainer.run():
        assert isinstance(event, Step | Epoch)
        assert switches() == before
    assert seen == {True: {(True, *before[1:])}, False: {(before[0], "ieee", "ieee", "ieee")}}


def test_switches_are_set_back_after_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = switches()
    with pytest.raises(ZeroDivisionError), exact_fp32(), fastest_convs():
        raise ZeroDivisionError
    assert switches() == before


def test_without_cuda_torchs_older_switches_can_be_read():
    with exact_fp32():
        assert backends.cudnn.allow_tf32 in (True, False)


def test_repeatable_runs_try_no_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        with fastest_convs():
            assert not backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_bf16_without_instructions_is_told(cnsn, monkeypatch, image_folder, tmp_path):
    monkeypatch.setattr("cnsn_cli.training.started.emulates_bf16", lambda device: True)
    words = ("--arch", TINY, "--exits", 1, "--data", image_folder, "--recipe", "quick", "--epochs", 1)
    words += ("--batch-size", 16, "--device", "cpu", "--out")
    told = cnsn("train", *words, tmp_path / "bf16", "--precision", "bf16").err
    assert "no instructions for bf16 here: a conv takes " in told
    assert " times as long as in fp32" in told
    assert "on cpu in bf16: batches of 16" in told
    assert "no instructions" not in cnsn("train", *words, tmp_path / "fp32", "--precision", "fp32").err


def test_whether_bf16_is_emulated_is_what_onednn_says(monkeypatch):
    for supported in (True, False):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda there=supported: there, raising=False
        )
        assert emulates_bf16(CPU) is not supported
    assert not emulates_bf16(torch.device("mps"))


def test_the_slowdown_is_a_ratio_of_times(monkeypatch):
    times = iter([0, 9, 0, 2, 0, 2, 0, 3, 0, 99, 0, 6, 0, 7, 0, 8])  # starts and ends: fp32, then bf16
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(times))
    assert slowdown_of_bf16(CPU) == 3


def test_measuring_the_slowdown_draws_no_random_numbers():
    """A resumed run measures after it has restored them, and its dropout draws from them."""
    before = torch.get_rng_state()
    slowdown_of_bf16(CPU)
    assert torch.equal(torch.get_rng_state(), before)


PEAK = """
from types import SimpleNamespace
from cnsn_cli.device import peak_memory

cpu = SimpleNamespace(type="cpu")
before = peak_memory(cpu)
filled = bytearray(b"x") * 2**28
full = peak_memory(cpu)
del filled
print(before, full, peak_memory(cpu))
"""


def test_the_peak_of_memory_holds_what_is_free_again():
    """Another process starts small, although this one may be large."""
    found = subprocess.check_output([sys.executable, "-c", PEAK], text=True)
    before, full, after = map(int, found.split())
    assert before < 2**27
    assert after == pytest.approx(full, rel=0.01)
    assert full - before == pytest.approx(2**28, rel=0.05)
