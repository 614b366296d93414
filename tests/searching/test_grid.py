"""The candidates of a search: the sub-models within 60 % to 100 % of a budget."""

import pytest

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.errors import BudgetError
from cnsn_cli.exits import Exit
from cnsn_cli.searching.grid import find_candidates, legal
from cnsn_cli.task import Task
from tests.conftest import TINY, built

TASK = Task.plain(classes=2)
ARCH = registry.find(TINY)


def macs_by_hand(word: int | str) -> int:
    """MACs of convs and linear layers, from the shapes of the weights and of what they compute."""
    model = built(TINY, (word,), TASK).model("submodel0")
    total, size = 0, 32
    layers = [("step_down", model.step_down), *model.units.named_children(), ("head", model.head)]
    for name, layer in layers:
        for weight in (p for p in layer.parameters() if p.dim() > 1):
            if name == "step_down":
                size = 32 // weight.shape[2]
            total += weight.numel() * (size**2 if weight.dim() == 4 else 1)
        if name.isdecimal() and any("Pool" in type(part).__name__ for part in layer):
            size //= 2
    return total


def test_the_candidates_of_two_budgets():
    widths, budgets = (0.5, 0.75), (500_000, 200_000)
    grid = find_candidates(ARCH, TASK, budgets, widths, "patch")
    depths = [point.drops for point in detach_points(ARCH.build(TASK), TASK.image_shape)]
    every = [*depths, *(Exit(k, w).word for w in (0.75, 0.5) for k in (0, *depths))]
    macs = {word: macs_by_hand(word) for word in every}
    expected = [word for word in every if any(0.6 * b <= macs[word] <= b for b in budgets)]
    assert list(grid.words) == expected
    assert [cost.macs for cost in grid.candidates] == [macs[word] for word in expected]
    assert 5 < len(expected) < len(every)
    assert grid.notes == ()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (5, "5 MACs are fewer than any sub-model needs: the smallest sub-model, 7@0.5, takes "),
        (10**9, "1,000,000,000 MACs are more than the base-model needs: the smallest sub-model, 7@0.5, "),
    ],
)
def test_a_budget_that_nothing_fits(budget, message):
    with pytest.raises(BudgetError) as caught:
        find_candidates(ARCH, TASK, (200_000, budget), (0.5,), "patch")
    assert str(caught.value).startswith(message)
    assert "and the base-model " in str(caught.value)


def test_a_budget_that_is_too_large_for_one_and_too_small_for_the_next():
    """In depth alone, 7 takes 135,232 MACs, and 6 takes 172,096: no budget has a gap. SqueezeNet has gaps."""
    arch, task = registry.find("torchvision:squeezenet1_1"), Task.plain(classes=2, image_size=64)
    with pytest.raises(BudgetError) as caught:
        find_candidates(arch, task, (4_000_000,), (), "patch")
    assert str(caught.value).startswith("no sub-model takes 60% to 100% of 4,000,000 MACs: the nearest are ")


def test_an_architecture_that_cannot_be_narrowed_is_searched_in_depth():
    arch = registry.find("torchvision:squeezenet1_1")
    task = Task.plain(classes=2, image_size=64)
    grid = find_candidates(arch, task, (16_000_000,), (0.5,), "patch")
    assert grid.candidates
    assert {cost.width for cost in grid.candidates} == {1.0}
    (note,) = grid.notes
    assert note.startswith("depths alone are searched: ")


def test_slow_candidates_are_left_out():
    whole = find_candidates(ARCH, TASK, (500_000,), (0.5,), "patch")
    assert find_candidates(ARCH, TASK, (500_000,), (0.5,), "patch", max_latency=10.0) == whole
    with pytest.raises(BudgetError, match="no candidate for 500,000 MACs takes at most 1e-06 ms"):
        find_candidates(ARCH, TASK, (500_000,), (0.5,), "patch", max_latency=1e-9)


def test_the_legal_order():
    assert legal([Exit(7, 0.5), Exit(0, 0.5), Exit(2), Exit(7)]) == "2,7,@0.5,7@0.5"
