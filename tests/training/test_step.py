"""A training step is a function of tensors: its operators, run again, do the next step to the last bit.

What a captured CUDA graph would freeze shows here on the CPU.
"""

import pytest
import torch
from torch import Tensor, nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.exits import read_exits, widths
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.step import TrainingStep
from tests.conftest import TINY, built
from tests.training.replay import Recording

TASK, CPU = Task.plain(), torch.device("cpu")
SAMPLES, BATCH, STEPS = 96, 8, 20
RECIPES = {
    "paper": {},
    "scales": {"gradient_scale": (0.5, 0.25), "final_scale": (1.0, 0.01)},
    "average": {"ema": 0.9},
    "distil base": {"distill": "base"},
    "distil chain": {"distill": "chain", "label_smoothing": 0.1},
    "mixup": {"mix": "mixup", "mix_alpha": 0.5},
    "cutmix and cutout": {"mix": "cutmix", "cutout": 8},
    "nesterov": {"nesterov": True, "decay_norms": False},
    "no momentum": {"momentum": 0.0},
    "no augmentation": {"flip": "none", "crop_padding": 0},
    "shared statistics": {"bn": "shared"},
    "adamw": {"optimizer": "adamw", "lr": 0.001},
    "muon": {"optimizer": "muon", "lr": 0.001},
    "accumulated and clipped": {"accumulate": 2, "clip_norm": 1.0},
}


def with_dropout() -> Backbone:
    backbone = registry.find(TINY).build(TASK)
    return Backbone(backbone.units, nn.Sequential(backbone.head, nn.Dropout(0.3)), backbone.conv_counts)


def new_step(
    changes: dict[str, object], frozen: bool = False, precision="fp32", exits=(1, 4)
) -> TrainingStep:
    torch.manual_seed(0)
    recipe = load_recipe("paper", {"batch_size": BATCH, "lr": 0.01, "epochs": 9, **changes})
    if widths(read_exits(exits)):
        network = built(TINY, exits, TASK)
    else:
        network = Cnsn(with_dropout(), exits, TASK, bn=recipe.bn)
    if frozen:
        network.freeze_base()
    labels = torch.randint(10, (SAMPLES,), generator=torch.Generator().manual_seed(1))
    return TrainingStep(network.train(), labels, recipe, precision)


def prepare(step: TrainingStep, number: int) -> None:
    """Two epochs with samples, a learning rate, scales and a decay of their own in every step."""
    generator = torch.Generator().manual_seed(number)
    if number in (0, 10):
        step.begin(plan_epoch(SAMPLES, step.recipe, 1 + number, CPU))
    images = len(step.indices)
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    indices = torch.randperm(SAMPLES, generator=generator)[:images]
    step.set(indices, pixels, 0.01 / (1 + number), step.recipe.gradient_scales(2, number / 30), number)


def state_of(step: TrainingStep) -> dict[str, Tensor]:
    tensors = dict(step.network.state_dict()) | {"losses": step.meter.losses, "correct": step.meter.correct}
    return tensors | (dict(step.average.network.state_dict(prefix="average.")) if step.average else {})


def after_steps(
    changes: dict[str, object], replayed: bool, **more: object
) -> tuple[dict[str, Tensor], set[str]]:
    step = new_step(changes, **more)
    recording = Recording()
    torch.manual_seed(3)  # for dropout
    for number in range(2 + STEPS):
        prepare(step, number)
        if number == 1 and replayed:
            with recording:
                step()
        elif number > 1 and replayed:
            recording.replay()
        else:
            step()
    return state_of(step), recording.questions


def assert_replayed_is_eager(changes: dict[str, object], **more: object) -> None:
    eager, _ = after_steps(changes, False, **more)
    replayed, questions = after_steps(changes, True, **more)
    assert questions == set()
    for name, tensor in eager.items():
        assert torch.equal(replayed[name], tensor), name


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_a_replayed_step_is_the_eager_step(changes):
    assert_replayed_is_eager(changes)


def test_a_replayed_step_in_bf16():
    assert_replayed_is_eager({}, precision="bf16")


NARROW = ("@0.5", "4@0.5")


@pytest.mark.parametrize("name", ["paper", "scales", "average", "distil chain", "mixup"])
def test_a_replayed_step_with_narrow_models(name):
    assert_replayed_is_eager(RECIPES[name], exits=NARROW)
    assert_replayed_is_eager(RECIPES[name], exits=NARROW, precision="bf16")


def test_a_replayed_step_on_a_frozen_base_model():
    assert_replayed_is_eager({"ema": 0.5}, frozen=True)


@pytest.mark.parametrize("frozen", ["a learning rate", "a scale"])
def test_a_number_in_the_step_would_be_noticed(frozen, monkeypatch):
    def set_number(self, *arguments: object) -> None:
        self.scales = torch.as_tensor(self.scales)
        group = self.optimizer.parts[0].param_groups[0]
        group["lr"] = torch.as_tensor(group["lr"])
        given(self, *arguments)
        if frozen == "a learning rate":
            group["lr"] = group["lr"].item()
        else:
            self.scales = self.scales.tolist()

    given = TrainingStep.set
    monkeypatch.setattr(TrainingStep, "set", set_number)
    monkeypatch.setattr("cnsn_cli.training.step.undo_in_step_downs", lambda parameters, scales: None)
    with pytest.raises(AssertionError):
        assert_replayed_is_eager(RECIPES["scales"])


@pytest.mark.parametrize("exits", [(1, 4), NARROW])
def test_a_step_does_not_walk_over_the_network(monkeypatch, exits):
    step = new_step(RECIPES["scales"], exits=exits)
    monkeypatch.setattr(Cnsn, "model", None)
    for number in range(2):
        prepare(step, number)
        step()
