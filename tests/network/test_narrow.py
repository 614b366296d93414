"""Narrow sub-models inside the network against plain networks whose weights are slices made by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.backbones.narrowing import narrow_backbones, narrowed
from cnsn_cli.errors import ArchitectureError, DetachPointError
from cnsn_cli.exits import Exit, read_exits
from cnsn_cli.network.loss import multi_model_loss
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from tests.conftest import built, lively

TASK = Task.plain(classes=7)
CASES = [
    ("vgg16:width=0.1", ("@0.5",)),
    ("vgg16:width=0.1", (2, "@0.5", "7@0.5")),
    ("vgg16:width=0.1", ("7@0.5",)),
    ("vgg16:width=0.1", (2, 7, "2@0.7", "7@0.7", "@0.4", "12@0.4")),
    ("resnet20:width=0.5", ("@0.5",)),  # option-A shortcuts
    ("resnet20:width=0.5", (7, "3@0.5", "13@0.5")),
    ("resnet18:width=0.1", (3, "@0.7", "@0.4", "7@0.4")),
]


def plain_model(network: Cnsn, arch: str, number: int, exit: Exit) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of the registry with leading slices of the network's parameters, made by hand.

    Returns it, and its parameters by the names that the whole network has for them.
    """
    found = registry.find(arch) if exit.width == 1 else narrowed(registry.find(arch), exit.width)
    backbone = found.build(TASK)
    whole, shared = dict(network.named_parameters()), {}
    first = 0
    if exit.drops:
        points = {point.drops: point.unit for point in detach_points(backbone, TASK.image_shape)}
        first = points[exit.drops]
    layers: list[nn.Module] = []
    if exit.drops:
        layers.append(copy.deepcopy(network.submodels[number].step_down))
    for part, module in [(f"units.{n}", unit) for n, unit in enumerate(backbone.units)] + [
        ("head", backbone.head)
    ]:
        if part != "head" and int(part.split(".")[1]) < first:
            continue
        layers.append(module)
        for name, parameter in module.named_parameters():
            source = whole[f"{part}.{name}"].detach()
            for axis, size in enumerate(parameter.shape):
                source = source.narrow(axis, 0, size)
            parameter.data = source.clone()
            shared[f"{part}.{name}"] = parameter
    return nn.Sequential(*layers), shared


@pytest.mark.parametrize(("arch", "words"), CASES)
def test_loss_and_gradients_equal_those_of_sliced_networks(arch, words):
    exits = read_exits(words)
    network = built(arch, words, TASK).double().train()
    plain = [plain_model(network, arch, number - 1, exit) for number, exit in enumerate((Exit(0), *exits))]
    models = [model.double().train() for model, _ in plain]
    images, labels = torch.randn(6, 3, 32, 32, dtype=torch.double), torch.randint(7, (6,))

    loss, losses = multi_model_loss(network(images), labels)
    loss.backward()

    expected = [F.cross_entropy(model(images), labels) for model in models]
    weights = [1.0] + [1 / len(exits)] * len(exits)
    total = sum(weight * part for weight, part in zip(weights, expected, strict=True))
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=0)
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-10, atol=0)

    gradients = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for number, ((_, shared), exit) in enumerate(zip(plain, (Exit(0), *exits), strict=True)):
        for name, parameter in shared.items():
            gradients[name][tuple(map(slice, parameter.shape))] += parameter.grad
        if exit.drops:
            for name, parameter in models[number][0].named_parameters():
                gradients[f"submodels.{number - 1}.step_down.{name}"] = parameter.grad
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-10 * largest, msg=name)


@pytest.mark.parametrize(("arch", "words"), CASES)
def test_a_model_by_itself_has_the_logits_of_the_joint_pass(arch, words):
    network = lively(arch, words)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for model, joint in zip(network.models(), network(images), strict=True):
            torch.testing.assert_close(model(images), joint, rtol=0, atol=1e-6 * joint.abs().max().item())


def test_what_a_narrow_model_shares():
    """Statistics follow the network; weights are copies, which a copy of the network has of its own."""
    network = lively("vgg11:width=0.1", ("@0.5", "4@0.5"))
    model = network.model("submodel0")
    before = model.units[0][0].weight.clone()
    with torch.no_grad():
        network.units[0][0].weight.zero_()
        network.submodels[0].units.get_submodule("0.1").running_mean.fill_(3)
    assert torch.equal(model.units[0][0].weight, before)
    assert torch.equal(model.units[0][1].running_mean, torch.full((3,), 3.0))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.units[0][0].weight.fill_(1)
    assert twin.model("submodel0").units[0][0].weight.min() == 1
    assert network.model("submodel0").units[0][0].weight.max() == 0


def test_the_state_has_only_what_is_private():
    network = lively("vgg11:width=0.1", (2, "@0.5", "4@0.5"))
    plain = lively("vgg11:width=0.1", (2,))
    more = network.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[1] for name in more} == {"1", "2"}
    assert not any("step_down" in name for name in more if name.startswith("submodels.1."))
    kinds = {name.rsplit(".", 1)[1] for name in more if "step_down" not in name}
    assert kinds == {"running_mean", "running_var", "num_batches_tracked"}
    assert [p.shape for p in network.parameters()][: len(list(plain.base.parameters()))] == [
        p.shape for p in plain.base.parameters()
    ]


def test_statistics_begin_as_the_leading_part_of_the_base():
    found, exits = registry.find("vgg11:width=0.1"), read_exits(("@0.5",))
    wide = found.build(TASK)
    wide.units[0][1].running_mean.copy_(torch.arange(6.0))
    network = Cnsn(wide, exits, TASK, narrow=narrow_backbones(found, wide, exits, TASK))
    assert network.submodels[0].units.get_submodule("0.1").running_mean.tolist() == [0, 1, 2]


def test_a_unit_that_changes_its_input_in_place(distribution):
    source = """
from torch import nn
from cnsn_cli import Backbone
class Doubled(nn.Module):
    def forward(self, x):
        return x.mul_(2)
def net(num_classes=10, width=1.0):
    c = round(8 * width)
    units = nn.Sequential(nn.Sequential(Doubled(), nn.Conv2d(3, c, 3)), nn.Conv2d(c, c, 3))
    return Backbone(units, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 7)), (1, 1))
net.narrows = "width"
"""
    distribution("inplacenet", {"inplacenet": source}, {"inplacenet": "inplacenet:net"})
    network = built("inplacenet", ("@0.5",), TASK).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        joint = network(images.clone())
        alone = [model(images.clone()) for model in network.models()]
    torch.testing.assert_close(joint, alone, rtol=0, atol=1e-6)


def test_what_cannot_be_built():
    found, exits = registry.find("vgg11:width=0.1"), read_exits((2, "@0.5"))
    wide = found.build(TASK)
    with pytest.raises(ArchitectureError, match=r"the width @0\.5 has no backbone"):
        Cnsn(wide, exits, TASK)
    narrow = narrow_backbones(found, wide, exits, TASK)
    with pytest.raises(DetachPointError, match=r'bn = "shared" and the width @0.5 exclude each other'):
        Cnsn(wide, exits, TASK, "shared", narrow=narrow)
    with pytest.raises(DetachPointError, match=r"^99 is no detach point: choose from 1, 2, 3, 4, 5, 6, 7$"):
        Cnsn(wide, ("99@0.5",), TASK, narrow=narrow)
    with pytest.raises(ArchitectureError, match=r"has no weights to train for the width @0\.5"):
        Cnsn(wide, exits, TASK, narrow=narrow).freeze_base()


def test_a_constant_that_changes_with_the_width(distribution):
    source = """
import torch
from torch import nn
from cnsn_cli import Backbone
class Scaled(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.register_buffer("scale", torch.linspace(0, 1, c).view(1, c, 1, 1), persistent=False)
    def forward(self, x):
        return x * self.scale
def net(num_classes=10, width=1.0):
    c = round(8 * width)
    units = nn.Sequential(nn.Sequential(nn.Conv2d(3, c, 3), Scaled(c)), nn.Conv2d(c, c, 3))
    return Backbone(units, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 7)), (1, 1))
net.narrows = "width"
"""
    distribution("scalednet", {"scalednet": source}, {"scalednet": "scalednet:net"})
    with pytest.raises(ArchitectureError, match=r"its constant units\.0\.1\.scale changes with the width"):
        built("scalednet", ("@0.5",), TASK)


COUNTING = """
import torch
from torch import nn
from cnsn_cli import Backbone
class Counting(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.register_buffer("seen", torch.zeros(c))
        self.register_buffer("shift", torch.arange(float(c)).view(1, c, 1, 1), persistent=False)
    def forward(self, x):
        if self.training:
            self.seen.add_(x.detach().mean((0, 2, 3)))
        return x + self.seen.view(1, -1, 1, 1) + self.shift
def net(num_classes=10, width=1.0):
    c = round(8 * width)
    units = nn.Sequential(nn.Sequential(nn.Conv2d(3, c, 3), Counting(c)), nn.Conv2d(c, c, 3))
    return Backbone(units, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 7)), (1, 1))
net.narrows = "width"
"""


def test_narrow_models_leave_the_buffers_of_the_base_model_alone(distribution):
    """Buffers that a layer changes in training are the base-model's; constants are those of the layer."""
    distribution("countingnet", {"countingnet": COUNTING}, {"countingnet": "countingnet:net"})
    images = torch.randn(2, 3, 32, 32)
    seen = []
    for words in ((), ("@0.5", "@0.25")):
        network = built("countingnet", words, TASK).train()
        sum(scores.sum() for scores in network(images)).backward()
        seen.append(network.units[0][1].seen.clone())
    assert torch.equal(*seen)
    assert not any(name.endswith("shift") for name in network.state_dict())
    assert [block.name for block in network.narrow[0].blocks if not block.is_saved] == ["units.0.1.shift"]
    network.eval()
    with torch.no_grad():
        for model, joint in zip(network.models(), network(images), strict=True):
            torch.testing.assert_close(model(images), joint)


def test_a_model_has_the_mode_of_the_network():
    network = lively("vgg11:width=0.1", ("@0.5",))
    assert not network.model("submodel0").training
    assert network.train().model("submodel0").training
    assert all(module.training for module in network.narrow[0].modules())
    assert not any(module.training for module in network.eval().narrow[0].modules())
