"""CUDA computes what the CPU computes, and bf16 nearly what fp32 does."""

import pytest
import torch

from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.trainer import Trainer
from tests.conftest import lively
from tests.cuda.steps import CUDA

pytestmark = pytest.mark.cuda
NETWORKS = {"vgg16": (2, 7), "resnet20": (3, 9), "torchvision:resnet18": (1, 5)}


@pytest.mark.parametrize(("arch", "exits"), NETWORKS.items(), ids=NETWORKS)
def test_logits_are_those_of_the_cpu(arch, exits):
    network = lively(arch, exits)
    pixels = torch.randint(
        256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        expected = [model.logits(pixels) for model in network.models()]
        found = [model.logits(pixels).cpu() for model in place(network, CUDA).models()]
    for ours, cpu in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, cpu, rtol=1e-4, atol=1e-4)


def losses(images: str, precision: str) -> list[list[float]]:
    """The training losses of each model in each epoch."""
    dataset = load_dataset(images)
    torch.manual_seed(0)
    network = place(Cnsn(registry.find("vgg11:width=0.25").build(dataset.task), (1, 4), dataset.task), CUDA)
    recipe = load_recipe("quick", {"epochs": 3, "lr": 0.005, "batch_size": 8})
    events = Trainer(network, dataset.train, dataset.test, recipe, precision, capture=True).run()
    epochs = [event for event in events if isinstance(event, Epoch)]
    return [[result.loss for result in epoch.train] for epoch in epochs]


def test_losses_in_bf16_follow_those_in_fp32(image_folder):
    """They fall from 0.8 to 0.01, and differ by at most 0.02 on the CPU, for the seeds 0 to 2."""
    exact, rough = (losses(str(image_folder), precision) for precision in ("fp32", "bf16"))
    assert exact != rough
    for number, (expected, found) in enumerate(zip(exact, rough, strict=True), 1):
        assert found == pytest.approx(expected, abs=0.06), f"epoch {number}"
