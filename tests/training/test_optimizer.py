"""The weights after some steps are those of a loop by hand, with torch's own optimizers."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cnsn_cli.data.pixels import normalise
from cnsn_cli.network.loss import multi_model_loss
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.step import TrainingStep
from tests.conftest import TINY, built

TASK = Task.plain()
SAMPLES, BATCH, STEPS, LR = 40, 8, 5, 0.01
PIXELS = torch.randint(
    256, (SAMPLES, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
LABELS = torch.randint(10, (SAMPLES,), generator=torch.Generator().manual_seed(2))
PLAIN = {"batch_size": BATCH, "lr": LR, "flip": "none", "crop_padding": 0}
CLASSIFIER = ("head.1.weight", "head.1.bias")


def learning_rate(step: int) -> float:
    """A rate of its own in each step, which a captured step would not notice if it were a number."""
    return LR / (1 + step)


def batch(step: int, size: int = BATCH) -> Tensor:
    return torch.arange(step * size, (step + 1) * size) % SAMPLES


def ours(network: Cnsn, changes: dict[str, object], drawn: tuple[str, ...] = ()) -> Cnsn:
    """`network` after STEPS steps of the product."""
    recipe = load_recipe("paper", {**PLAIN, **changes})
    step = TrainingStep(network.train(), LABELS, recipe, drawn=drawn)
    step.begin(plan_epoch(SAMPLES, recipe, 1, torch.device("cpu")))
    scales = recipe.gradient_scales(len(step.step_downs), 0)
    for number in range(STEPS):
        chosen = batch(number, len(step.indices))
        step.set(chosen, PIXELS[chosen], learning_rate(number), scales, number)
        step()
    return network


def by_hand(
    network: Cnsn, make: Callable[[Cnsn], list[torch.optim.Optimizer]], scale_lr: Callable[..., float]
) -> Cnsn:
    """`network` after STEPS steps of a loop in plain torch."""
    optimizers = make(network.train())
    for number in range(STEPS):
        chosen = batch(number)
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(number) * scale_lr(group)
        loss, _ = multi_model_loss(network(normalise(PIXELS[chosen], TASK)), LABELS[chosen])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return network


def assert_alike(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            weight, expected, rtol=2e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_pretrained_weights_take_smaller_steps():
    network = built(TINY, (1, 4), TASK)
    twin = copy.deepcopy(network)

    def groups(network: Cnsn) -> list[torch.optim.Optimizer]:
        new = [p for n, p in network.named_parameters() if "step_down" in n or n in CLASSIFIER]
        old = [p for n, p in network.named_parameters() if "step_down" not in n and n not in CLASSIFIER]
        assert (len(new), len(old)) == (2 * 4 + 2, 8 * 4)
        parts = [{"params": new, "share": 1.0}, {"params": old, "share": 0.1}]
        return [torch.optim.SGD(parts, lr=LR, momentum=0.9, weight_decay=6e-4)]

    hand = by_hand(twin, groups, lambda group: group["share"])
    assert_alike(ours(network, {"pretrained_lr": 0.1}, CLASSIFIER), hand)


def test_a_resumed_run_still_knows_what_is_new(checkpoint, image_folder, quick, tmp_path):
    """The classifier is new, because the weights are for other classes: a state names it."""
    from safetensors.torch import load_file, save_file

    from tests.training.test_resume import Stop, assert_same_run, stop_at_step

    weights = {n: t for n, t in load_file(checkpoint).items() if not n.startswith("submodels")}
    weights |= {name: weights[name].repeat(3, *[1] * (weights[name].dim() - 1)) for name in CLASSIFIER}
    save_file(weights, tmp_path / "other.safetensors")
    recipe = quick.model_copy(update={"pretrained_lr": 0.01, "lr": 0.05, "epochs": 2})
    start = {"init": tmp_path / "other.safetensors", "save_every": "1"}
    events: list[object] = []
    train(TINY, (1,), str(image_folder), recipe, tmp_path / "whole", watch=events.append, **start)
    assert set(events[0].drawn) == set(CLASSIFIER)
    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), recipe, tmp_path / "cut", watch=stop_at_step(3), **start)
    events.clear()
    resume(tmp_path / "cut", watch=events.append)
    assert events[0].drawn == ()  # it is told once
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
