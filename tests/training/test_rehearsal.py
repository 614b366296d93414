"""Steps before the first one that counts: they train nothing, and decide whether compiling pays."""

import pytest
import torch

from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.errors import TrainingError
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training import rehearsal
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.rehearsal import pays, rehearse
from cnsn_cli.training.step import TrainingStep
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY, broken_compiler


@pytest.fixture(scope="module")
def dataset(image_folder):
    return load_dataset(str(image_folder))


def trainer(dataset, **changes: object) -> Trainer:
    torch.manual_seed(0)
    network = Cnsn(registry.find(f"{TINY}").build(dataset.task), (1, 4), dataset.task)
    network.head.append(torch.nn.Dropout(0.5))
    recipe = load_recipe("quick", {"epochs": 2, "batch_size": 16, "ema": 0.9, **changes})
    return Trainer(network, dataset.train, dataset.test, recipe)


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.0, "nesterov": False}], ids=["momentum", "none"])
def test_nothing_is_trained_by_a_rehearsal(dataset, changes):
    ours, plain = trainer(dataset, **changes), trainer(dataset, **changes)
    torch.manual_seed(1)
    rehearse(ours)
    list(ours.run())
    torch.manual_seed(1)
    list(plain.run())
    for network, other in ((ours.network, plain.network), (ours.trained, plain.trained)):
        for name, tensor in other.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor), name
    assert torch.equal(ours.meter.losses, plain.meter.losses)


def test_too_little_memory_for_the_last_step_of_an_epoch_shows_at_once(dataset, monkeypatch):
    def full(step):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TrainingStep, "measured", full)
    with pytest.raises(torch.OutOfMemoryError):
        rehearse(trainer(dataset))


def test_short_runs_are_not_compiled_and_long_runs_are():
    """At 2.3 ms a step, compiling pays after 40 s / (0.4 * 2.3 ms) = 43,478 steps."""
    assert not pays(0.0023, 2_375)  # recipe fast on CIFAR-10
    assert not pays(0.0023, 43_478)
    assert pays(0.0023, 43_479)
    assert pays(0.0023, 300 * 1_562)  # recipe paper


def test_a_step_is_compiled_if_that_pays(dataset, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    for worth in (True, False):
        monkeypatch.setattr(rehearsal, "pays", lambda seconds, steps, worth=worth: worth)
        ours = trainer(dataset)
        rehearse(ours, undecided=True)
        assert ours.training_step.is_compiled is worth


def test_without_a_compiler_a_step_stays_eager_unless_compiling_was_asked_for(dataset, monkeypatch):
    monkeypatch.setattr(torch, "compile", broken_compiler("no compiler"))
    monkeypatch.setattr(rehearsal, "pays", lambda seconds, steps: True)
    ours = trainer(dataset)
    rehearse(ours, undecided=True)
    assert not ours.training_step.is_compiled
    ours.training_step.compile()
    with pytest.raises(TrainingError, match="no compiler"):
        rehearse(ours)
