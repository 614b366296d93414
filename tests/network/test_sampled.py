"""A pass of some of the sub-models is the sum of separate networks with the same weights."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.sampling import Sampler
from tests.conftest import TINY, built

TASK = Task.plain(classes=5)
EXITS = (1, 4, "@0.5", "2@0.5", "4@0.5", "@0.25")


def separate(whole: Cnsn, number: int) -> Cnsn:
    """A network of the base-model and one sub-model of `whole`, with its weights and statistics."""
    network = built(TINY, (EXITS[number - 1],), TASK).double().train()
    own = f"submodels.{number - 1}."
    state = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("submodels.")}
    state |= {
        f"submodels.0.{name.removeprefix(own)}": tensor
        for name, tensor in whole.state_dict().items()
        if name.startswith(own)
    }
    network.load_state_dict(state)
    return network


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.randint(5, (6,))


@pytest.mark.parametrize("numbers", [{1, 3, 6}, {2, 5}, {4}, {5, 6}, {1, 2, 3, 4, 5, 6}, set()])
def test_a_sampled_pass_is_the_sum_of_separate_networks(numbers):
    whole = built(TINY, EXITS, TASK).double().train()
    networks = {number: separate(whole, number) for number in sorted(numbers)}
    before = copy.deepcopy(whole.state_dict())
    images, labels = batch()
    whole.choose(numbers)
    logits = whole(images)
    assert len(logits) == 1 + len(numbers)
    losses = [F.cross_entropy(scores, labels) for scores in logits]
    torch.stack(losses).sum().backward()

    expected: dict[str, Tensor] = {}

    def add(network: Cnsn, loss: Tensor, number: int) -> None:
        network.zero_grad()
        loss.backward()
        for name, parameter in network.named_parameters():
            key = name.replace("submodels.0.", f"submodels.{number - 1}.")
            if parameter.grad is not None:
                expected[key] = expected.get(key, 0) + parameter.grad

    alone = separate(whole, 1)
    base = F.cross_entropy(alone(images)[0], labels)
    torch.testing.assert_close(losses[0], base, rtol=0, atol=1e-10)
    add(alone, base, 1)
    for (number, network), loss in zip(networks.items(), losses[1:], strict=True):
        own = F.cross_entropy(network(images)[1], labels)
        torch.testing.assert_close(loss, own, rtol=0, atol=1e-10)
        add(network, own, number)
    found = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, gradient in expected.items() if gradient.any() or name in found}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-10)
    for name, tensor in whole.state_dict().items():
        if "running_mean" in name and name.startswith("submodels."):
            touched = int(name.split(".")[1]) + 1 in numbers
            assert torch.equal(tensor, before[name]) != touched, name


def test_all_models_pass_again_after_all_are_chosen():
    whole = built(TINY, EXITS, TASK).double().eval()
    images, _ = batch()
    everything = whole(images)
    whole.choose({2})
    assert torch.equal(whole(images)[1], everything[2])
    whole.choose(range(7))
    assert all(map(torch.equal, whole(images), everything))


def test_each_candidate_trains_equally_often():
    sampler = Sampler(5, seed=3)
    chosen = [sampler.numbers(step) for step in range(400)]
    assert {len(numbers) for numbers in chosen} == {3}
    counts = [sum(number in numbers for numbers in chosen) for number in range(1, 6)]
    assert sum(counts) == 1200
    for count in counts:  # binomial: 240 +- 9.8
        assert 200 < count < 280
    assert chosen == [Sampler(5, seed=3).numbers(step) for step in range(400)]
    assert chosen != [Sampler(5, seed=4).numbers(step) for step in range(400)]
    assert Sampler(2, 0).numbers(0) == {1, 2}
    assert Sampler(1, 0).numbers(0) == {1}
