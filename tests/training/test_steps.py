"""Six steps with every option of the optimizer and the loss, compared with the formulas written by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnsn_cli.data.pixels import normalise
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY, built

TASK, CPU = Task.plain(), torch.device("cpu")
OPTIONS = {
    "epochs": 2, "batch_size": 16, "lr": 0.01, "warmup_epochs": 1, "schedule": "cosine", "crop_padding": 0,
    "momentum": 0.9, "nesterov": True, "weight_decay": 0.05, "decay_norms": False,
    "gradient_scale": (0.5, 0.25), "final_scale": (1.0, 0.01),
    "distill": "chain", "temperature": 3.0, "label_smoothing": 0.1,
}  # fmt: skip
RATES = [0.01 / 3, 0.02 / 3, 0.01, *(0.01 * (1 + math.cos(math.pi * step / 3)) / 2 for step in (1, 2, 3))]


@pytest.fixture
def split() -> MemorySplit:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (48, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return MemorySplit(pixels, torch.randint(10, (48,), generator=generator))


def network(exits: tuple[int | str, ...] = (1, 4)) -> Cnsn:
    return built(TINY, exits, TASK)


def losses(logits: list[Tensor], labels: Tensor) -> list[Tensor]:
    """The loss of each model: half from labels, half from the softened answers of the model before it."""
    hard = [F.cross_entropy(scores, labels, label_smoothing=0.1) for scores in logits]
    soft = [
        9 * (p * (p.log() - (student / 3).log_softmax(1))).sum(1).mean()
        for student, teacher in zip(logits[1:], logits, strict=False)
        for p in [(teacher.detach() / 3).softmax(1)]
    ]
    return [hard[0], *(0.5 * h + 0.5 * s for h, s in zip(hard[1:], soft, strict=True))]


@pytest.mark.parametrize("exits", [(1, 4), (4, "@0.5"), ("@0.5", "4@0.5")])
def test_six_steps_by_hand(split, exits):
    ours = network(exits)
    reference = copy.deepcopy(ours).train()
    list(Trainer(ours, split, split, load_recipe("quick", OPTIONS)).run())

    orders = [plan_epoch(48, load_recipe("quick", OPTIONS), epoch, CPU).order for epoch in (1, 2)]
    parameters, momenta = dict(reference.named_parameters()), {}
    for step, indices in enumerate(torch.cat(orders).split(16)):
        scales = (1, 0.5 + 0.5 * step / 5, 0.25 - 0.24 * step / 5)
        found = losses(reference(normalise(split.pixels[indices], TASK)), split.labels[indices])
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        gradients = [torch.autograd.grad(loss, list(parameters.values()), **options) for loss in found]
        for (name, parameter), *parts in zip(parameters.items(), *gradients, strict=True):
            kept = (1, 1, 1) if "step_down" in name else scales
            change = sum(w * k * part for w, k, part in zip((1, 0.5, 0.5), kept, parts, strict=True))
            if parameter.dim() > 1:  # weights of convs and linear layers, neither biases nor BN
                change = change + 0.05 * parameter.detach()
            momenta[name] = 0.9 * momenta[name] + change if name in momenta else change
            parameter.data -= RATES[step] * (change + 0.9 * momenta[name])
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_step_learns_from_images_that_are_cut_out_and_mixed(split):
    recipe = load_recipe("quick", {**OPTIONS, "epochs": 1, "mix": "cutmix", "cutout": 8})
    seen, ours = [], network()
    ours.register_forward_pre_hook(lambda module, images: seen.append(images[0].clone()))
    list(Trainer(ours, split, split, recipe).run())
    plan = plan_epoch(48, recipe, 1, CPU)
    assert not seen[0].any()  # blank images, to check the size of batches
    for images, indices in zip(seen[1:], plan.order.split(16), strict=True):
        expected, _ = plan.prepare(split.pixels[indices], split.labels[indices], indices, TASK)
        plain = normalise(split.pixels[indices], TASK)
        assert torch.equal(images, expected)
        assert not torch.equal(images, plain)
