"""Networks of torchvision and timm, as they are: the same function, trained, detached, counted."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from cnsn_cli.backbones import arch_string, registry
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.deploy.detach import detach
from cnsn_cli.deploy.export import export
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.loss import multi_model_loss
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.initial_weights import Start
from tests.conftest import saved

CLASSES = 5
TEN = {  # pixels a side, exits
    "torchvision:resnet50:width_per_group=16": (32, (4, 25)),
    "torchvision:densenet121": (32, (1, 39)),
    "torchvision:mobilenet_v3_small:width_mult=0.5,dropout=0.1": (32, (4, 26)),
    "torchvision:efficientnet_b0": (32, (1, 40)),
    "torchvision:regnet_y_400mf": (32, (1, 36)),
    "torchvision:shufflenet_v2_x0_5": (32, (1, 25)),
    "torchvision:googlenet": (32, (3, 13)),
    "torchvision:squeezenet1_1": (224, (1, 9)),
    "torchvision:mnasnet0_5:dropout=0.1": (32, (2, 24)),
    "timm:convnext_tiny:dims=(8,16,32,64),drop_path_rate=0.2": (32, (3, 12)),
}


def original(arch: str, classes: int) -> nn.Module:
    """The network as its library builds it, with running statistics that are not those it starts with."""
    library, name, options = arch_string.parse(arch)
    torch.manual_seed(3)
    if library == "timm":
        network = timm.create_model(name, num_classes=classes, **options)
    else:
        extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        network = models.get_model(name, weights=None, num_classes=classes, **options, **extra)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def rebuilt(arch: str, network: nn.Module, task: Task, exits: tuple[int, ...]) -> Cnsn:
    """The same through units, with sub-models."""
    backbone = registry.find(arch).build(task)
    Start(network.state_dict(), "the original").fill(backbone, task.num_classes)
    return Cnsn(backbone, exits, task)


def step(network: Cnsn, images: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    loss, _ = multi_model_loss(network.train()(images), torch.arange(len(images)) % CLASSES)
    loss.backward()
    optimizer.step()


SLOW = ("torchvision:densenet121", "torchvision:efficientnet_b0", "torchvision:regnet_y_400mf")
SLOW += ("torchvision:squeezenet1_1",)


@pytest.mark.parametrize("arch", [pytest.param(a, marks=[pytest.mark.long] * (a in SLOW)) for a in TEN])
def test_a_network_as_it_is(arch, tmp_path):
    size, exits = TEN[arch]
    task = Task.plain(classes=CLASSES, image_size=size)
    images = torch.randn(4, 3, size, size)
    network = original(arch, CLASSES)
    expected = network(images)
    whole = rebuilt(arch, network, task, exits)
    base = whole.base.eval()
    assert torch.equal(nn.Sequential(base.units, base.head)(images), expected)
    for logits in (base(images), whole.eval()(images)[0]):  # these choose how features lie in memory
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)

    before = [tensor.clone() for tensor in whole.parameters()]
    step(whole, images)
    assert all(tensor.grad is not None for tensor in whole.parameters())
    assert not all(map(torch.equal, before, whole.parameters()))
    assert all(tensor.isfinite().all() for tensor in whole.parameters())

    path, small = saved(tmp_path / "whole.safetensors", whole.eval(), arch), tmp_path / "small.safetensors"
    detach(path, "submodel1", small)
    submodel = whole.to(memory_format=torch.channels_last).models()[2]
    assert torch.equal(load(small)(images), submodel(images))

    for record, model in zip(read_metadata(path, read_header(path)).models, whole.models(), strict=True):
        with FlopCounterMode(display=False) as counter:
            model.eval()(images[:1])
        assert 2 * record.macs == counter.get_total_flops(), record.name


@pytest.mark.long
@pytest.mark.parametrize("arch", TEN)
@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_a_submodel_is_exported(arch, to, tmp_path):
    """The export compares itself with PyTorch, and raises where they differ."""
    size, exits = TEN[arch]
    task = Task.plain(classes=CLASSES, image_size=size)
    whole = rebuilt(arch, original(arch, CLASSES), task, exits)
    path = saved(tmp_path / "whole.safetensors", whole.eval(), arch)
    assert export(path, to, tmp_path / f"small.{to}", "0").difference < 1e-2


OUT = ("vit_", "swin_")  # one conv, and attention


@pytest.mark.long
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_classifier_of_torchvision(name):
    """Its pieces return its logits, bit for bit, or building them raises."""
    size = 224 if name == "maxvit_t" else 96
    task = Task.plain(classes=CLASSES, image_size=size)
    if name.startswith(OUT):
        with pytest.raises(ArchitectureError, match="a cut goes between two conv layers"):
            registry.find(f"torchvision:{name}").build(task)
        return
    assert detach_points(registry.find(f"torchvision:{name}").build(task), task.image_shape)
