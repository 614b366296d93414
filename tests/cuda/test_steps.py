"""A captured step is the eager step, to the last bit; and one that cannot be captured stays eager."""

import pytest
import torch
from torch import Tensor, nn

from cnsn_cli.training.step import TrainingStep
from tests.conftest import TINY
from tests.cuda.steps import new_step, take
from tests.training.test_step import RECIPES, state_of

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("repeatable")]
STEPS = 50
MOBILENET = ("torchvision:mobilenet_v2", (1, 30))  # with dropout
CASES = {
    "vgg": ("vgg16:width=0.25", (2, 7), {}),
    "resnet": ("resnet20", (3, 9), {}),
    "dropout": (*MOBILENET, {}),
    "widths": ("vgg16:width=0.25", ("@0.5", "7@0.5"), {**RECIPES["scales"], "ema": 0.9}),
    "everything": (*MOBILENET, {**RECIPES["scales"], **RECIPES["mixup"], "ema": 0.9, "distill": "chain"}),
} | {name: (TINY, (1, 4), changes) for name, changes in RECIPES.items()}


def assert_same(ours: TrainingStep, plain: TrainingStep) -> None:
    found = state_of(ours)
    for name, expected in state_of(plain).items():
        assert expected.isfinite().all(), name
        assert torch.equal(found[name], expected), name


def both(*arguments: object, **more: object) -> tuple[TrainingStep, TrainingStep]:
    """Two steps that have been taken as often, the second one eagerly."""
    steps = tuple(new_step(*arguments, capture=capture, **more) for capture in (True, False))
    for step in steps:
        take(step, STEPS)
    assert not steps[1].is_captured
    return steps


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_captured_step_is_the_eager_step(case):
    captured, plain = both(*case)
    assert captured.why_not_captured == ""
    assert captured.is_captured
    assert_same(captured, plain)


@pytest.mark.parametrize("exits", [(2, 7), (2, "@0.5")])
def test_a_captured_step_in_bf16_is_the_eager_step(exits):
    captured, plain = both("vgg16:width=0.25", exits, precision="bf16")
    assert captured.is_captured
    assert_same(captured, plain)


class Asking(nn.Module):
    """Asks the device for a value, which a graph cannot."""

    def forward(self, features: Tensor) -> Tensor:
        return features if features.sum() < 1e30 else -features


def test_a_step_that_asks_for_a_value_is_not_captured_and_says_where():
    asking, plain = both(TINY, (1, 4), last=Asking())
    assert "asks the device for a value in test_steps.py, line" in asking.why_not_captured
    assert not asking.is_captured
    assert_same(asking, plain)
