"""The one-pass network against N+1 separate passes of plain modules."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.errors import CnsnError, DetachPointError
from cnsn_cli.network.loss import multi_model_loss
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.step_down import patch
from cnsn_cli.task import Task

TASK = Task.plain(classes=7)
CASES = [
    ("vgg16:width=0.1", ()),
    ("vgg16:width=0.1", (7,)),
    ("vgg16:width=0.1", (2, 7)),
    ("vgg16:width=0.1", (1, 2, 5, 9, 12)),
    ("resnet20:width=0.5", ()),
    ("resnet20:width=0.5", (1,)),
    ("resnet20:width=0.5", (7, 13)),
    ("resnet18:width=0.1", (1, 3, 7, 11, 15)),
]


def build(arch: str, exits: tuple[int, ...], bn: str = "private", seed: int = 0) -> Cnsn:
    torch.manual_seed(seed)
    return Cnsn(registry.find(arch).build(TASK), exits, TASK, bn)


def separate_models(arch: str, exits: tuple[int, ...], network: Cnsn) -> list[nn.Sequential]:
    """The models as the paper describes them: separate modules in plain torch, without our network code."""
    backbone = registry.find(arch).build(TASK)
    state = network.state_dict()
    for part, module in (("units.", backbone.units), ("head.", backbone.head)):
        own = {name.removeprefix(part): t for name, t in state.items() if name.startswith(part)}
        module.load_state_dict(own)
    models = [nn.Sequential(*copy.deepcopy(list(backbone.units)), copy.deepcopy(backbone.head))]
    points = {point.drops: point.unit for point in detach_points(backbone, TASK.image_shape)}
    for submodel, drops in zip(network.submodels, exits, strict=True):
        kept = copy.deepcopy(list(backbone.units)[points[drops] :])
        models.append(nn.Sequential(copy.deepcopy(submodel.step_down), *kept, copy.deepcopy(backbone.head)))
    return models


def shared_name(name: str, drops_units: int, units: int) -> str:
    """The network's name for a tensor called `name` in a separate model.

    A sub-model that drops `drops_units` units has its step-down conv at position 0.
    """
    position, _, rest = name.partition(".")
    unit = int(position) - 1 + drops_units if drops_units else int(position)
    return f"units.{unit}.{rest}" if unit < units else f"head.{rest}"


@pytest.mark.parametrize(("arch", "exits"), CASES)
def test_loss_and_gradients_equal_those_of_separate_passes(arch, exits):
    network = build(arch, exits).double().train()
    models = [model.double().train() for model in separate_models(arch, exits, network)]
    images, labels = torch.randn(6, 3, 32, 32, dtype=torch.double), torch.randint(7, (6,))

    logits = network(images)
    loss, losses = multi_model_loss(logits, labels)
    loss.backward()

    expected = [F.cross_entropy(model(images), labels) for model in models]
    weights = [1.0] + [1 / max(1, len(exits))] * len(exits)
    total = sum(weight * part for weight, part in zip(weights, expected, strict=True))
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=0)
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-10, atol=0)

    gradients = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for index, model in enumerate(models):
        first_unit = network.submodels[index - 1].first_unit if index else 0
        for name, parameter in model.named_parameters():
            if index and name.startswith("0."):
                gradients[f"submodels.{index - 1}.step_down.{name[2:]}"] += parameter.grad
            else:
                gradients[shared_name(name, first_unit, len(network.units))] += parameter.grad
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in network.named_parameters():
        difference = (parameter.grad - gradients[name]).abs().max().item()
        assert difference <= 1e-10 * largest, f"{name} differs by {difference}"


@pytest.mark.parametrize(("arch", "exits"), CASES)
def test_each_model_gathers_its_own_statistics(arch, exits):
    network = build(arch, exits).double().train()
    models = [model.double().train() for model in separate_models(arch, exits, network)]
    for _ in range(2):
        images = torch.randn(4, 3, 32, 32, dtype=torch.double)
        network(images)
        for model in models:
            model(images)
    network.eval()
    images = torch.randn(4, 3, 32, 32, dtype=torch.double)
    for ours, alone, reference in zip(network(images), network.models(), models, strict=True):
        expected = reference.eval()(images)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alone(images), expected, rtol=1e-9, atol=1e-12)


def test_shared_statistics_are_updated_by_each_model_in_turn():
    network = build("vgg11:width=0.1", (1, 4), bn="shared").double().train()
    models = separate_models("vgg11:width=0.1", (1, 4), network)
    images = torch.randn(4, 3, 32, 32, dtype=torch.double)
    # The running statistics of unit 7, the last one, after base, submodel0 and submodel1 have passed in turn.
    mean, var = torch.zeros(51, dtype=torch.double), torch.ones(51, dtype=torch.double)
    seen = []
    for model in models:
        last_conv = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
        last_conv.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        model.double().train()(images)
    for features in seen:
        mean = 0.9 * mean + 0.1 * features.mean((0, 2, 3))
        var = 0.9 * var + 0.1 * features.var((0, 2, 3), unbiased=True)
    network(images)
    norm = network.units[7][1]
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.num_batches_tracked == 3
    assert not [name for name in network.state_dict() if name.startswith("submodels.0.units")]


def test_learnable_parameters_are_those_of_the_base_and_the_step_downs():
    network = build("vgg16:width=0.1", (2, 7))
    plain = registry.find("vgg16:width=0.1").build(TASK)
    expected = sum(p.numel() for part in (plain.units, plain.head) for p in part.parameters())
    for submodel in network.submodels:
        expected += sum(p.numel() for p in submodel.step_down.parameters())
    assert sum(p.numel() for p in network.parameters()) == expected


def test_names_of_tensors_are_the_ordinary_ones():
    network, plain = build("resnet20", (3,)), registry.find("resnet20").build(TASK)
    names = set(network.state_dict())
    assert {f"units.{name}" for name in plain.units.state_dict()} <= names
    assert {f"head.{name}" for name in plain.head.state_dict()} <= names
    private = {name for name in names if name.startswith("submodels.0.")}
    assert "submodels.0.step_down.0.weight" in private
    assert "submodels.0.units.2.bn1.running_mean" in private
    assert "submodels.0.units.1.bn1.running_mean" not in private
    assert not {n for n in private if n.endswith(("weight", "bias")) and "step_down" not in n}


def test_models_follow_every_change_of_the_network():
    network = build("vgg11:width=0.1", (1, 4)).eval()
    models, images = network.models(), torch.randn(2, 3, 32, 32)
    other = build("vgg11:width=0.1", (1, 4), seed=1).eval()
    network.load_state_dict(other.state_dict(), assign=True)
    for before, after in zip(models, other(images), strict=True):
        torch.testing.assert_close(before(images), after)


def test_base_and_submodels_can_be_called():
    network = build("vgg11:width=0.1", (1, 4)).eval()
    images = torch.randn(2, 3, 32, 32)
    base, first, second = network(images)
    torch.testing.assert_close(network.base(images), base)
    torch.testing.assert_close(network.model("submodel0")(images), first)
    torch.testing.assert_close(network.model("submodel1")(images), second)
    assert [(m.name, m.drops, m.first_unit) for m in network.models()] == [
        ("base", 0, 0),
        ("submodel0", 1, 1),
        ("submodel1", 4, 4),
    ]


def test_models_are_found_by_name():
    network = build("vgg11:width=0.1", (1, 4)).eval()
    images = torch.randn(2, 3, 32, 32)
    names = ["base", "submodel0", "submodel1"]
    for name, logits in zip(names, network(images), strict=True):
        model = network.model(name)
        assert model.name == name
        torch.testing.assert_close(model(images), logits)
        assert model.model(name) is model
    for wrong in ("submodel2", "1", ""):
        with pytest.raises(CnsnError, match=f"^no model '{wrong}': choose base, submodel0, submodel1$"):
            network.model(wrong)
    with pytest.raises(CnsnError, match=r"^no model 'base': choose submodel1$"):
        network.model("submodel1").model("base")


def test_evaluating_one_model_leaves_the_mode_of_the_network():
    network = build("vgg11:width=0.1", (1,)).train()
    network.model("submodel0").eval()
    assert all(module.training for module in network.modules())


def test_a_copy_is_independent():
    network = build("vgg11:width=0.1", (1,)).train()
    twin = copy.deepcopy(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert twin.submodels[0].units.get_submodule("1.1").num_batches_tracked == 1


def test_dropping_everything_is_refused():
    with pytest.raises(DetachPointError, match="13 is no detach point"):
        build("vgg16:width=0.1", (13,))


@pytest.mark.parametrize(
    ("size", "feature", "kernel", "stride"),
    [(32, 16, 2, 2), (32, 4, 8, 8), (32, 32, 1, 1), (33, 17, 17, 1), (30, 7, 6, 4), (224, 7, 32, 32)],
)
def test_step_down_geometry(size, feature, kernel, stride):
    step_down = patch((3, size, size), (5, feature, feature))
    conv = step_down[0]
    assert (conv.kernel_size, conv.stride, conv.padding) == ((kernel,) * 2, (stride,) * 2, (0, 0))
    assert step_down.eval()(torch.randn(2, 3, size, size)).shape == (2, 5, feature, feature)
    assert isinstance(step_down[1], nn.BatchNorm2d)
    assert isinstance(step_down[2], nn.ReLU)


def test_a_norm_in_the_head_is_shared_too():
    def backbone():
        torch.manual_seed(0)
        units = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3)))
        # The BN is number 0 in the head, so that a mix-up of its number with the number of a unit shows.
        head = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
        return Backbone(units, head, (1, 1, 1))

    network = Cnsn(backbone(), (1, 2), TASK).train()
    images = torch.randn(5, 3, 32, 32)
    network(images)
    features = network.units(images)
    norm = backbone().head[0].train()
    norm(features)
    torch.testing.assert_close(network.head[0].running_mean, norm.running_mean)
    assert "submodels.1.head.0.running_mean" in network.state_dict()
    assert not torch.equal(network.submodels[1].head.get_submodule("0").running_mean, norm.running_mean)


def test_a_norm_without_running_statistics():
    """Such a BN layer normalises each model's slice by itself, in evaluation too."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    units = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv2d(4, 4, 3), norm))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    network = Cnsn(Backbone(units, head, (1, 1)), (1,), TASK).eval()
    images = torch.randn(4, 3, 32, 32)
    for model, logits in zip(network.models(), network(images), strict=True):
        assert torch.allclose(model(images), logits, atol=1e-6)


def repeating_backbone() -> Backbone:
    """A backbone that repeats one ReLU and one pool; the names of units are letters, not numbers."""
    torch.manual_seed(0)
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    convs = [
        nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4)) for i in range(3)
    ]
    units = [convs[0], relu, pool, convs[1], relu, pool, convs[2], relu]
    named = OrderedDict(zip("abcdefgh", units, strict=True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    return Backbone(nn.Sequential(named), head, (1, 0, 0, 1, 0, 0, 1, 0))


def test_units_may_repeat_and_have_any_name():
    network = Cnsn(repeating_backbone(), (1, 2), TASK).train()
    network(torch.randn(4, 3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    for joined, model in zip(network.eval()(images), network.models(), strict=True):
        torch.testing.assert_close(model(images), joined)
    assert [len(model.units) for model in network.models()] == [8, 5, 2]


def test_a_layer_with_weights_may_not_repeat():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    with pytest.raises(
        ValueError, match=r"units.1 and units.0 are one module: a layer with weights may appear only once"
    ):
        Backbone(nn.Sequential(conv, conv), nn.Flatten(), (1, 1))


def test_torch_compile_takes_the_one_pass_as_one_graph():
    network = build("vgg11:width=0.1", (1, 4)).train()
    expected = copy.deepcopy(network)(images := torch.randn(4, 3, 32, 32))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for ours, reference in zip(compiled(images), expected, strict=True):
        torch.testing.assert_close(ours, reference)


def test_a_depthwise_conv_does_not_change_how_features_lie_in_memory():
    """A kernel over one channel is contiguous in both formats, and does not show which one is wanted."""
    units = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    base = Cnsn(Backbone(units, head, (1, 1)), (), Task.plain()).base
    seen = []
    units[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].is_contiguous()))
    base(torch.randn(2, 3, 32, 32))
    assert seen == [True]


def test_a_unit_that_changes_its_images_does_not_change_what_step_downs_get():
    class InPlace(nn.Sequential):
        def forward(self, images):
            return super().forward(images.mul_(2).sub_(1))

    def unit(kind: type, channels: int) -> nn.Module:
        return kind(nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())

    units = nn.Sequential(unit(InPlace, 3), unit(nn.Sequential, 4))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    network = Cnsn(Backbone(units, head, (1, 1)), (1,), Task.plain(image_size=8)).eval()
    images = torch.randn(2, 3, 8, 8)
    alone = network.models()[1](images.clone())
    torch.testing.assert_close(network(images.clone())[1], alone)
