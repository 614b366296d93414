"""Weights to start from: a file with weights of the original network, or published weights."""

import re
import sys
import urllib.error

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.tracing.units import traced
from cnsn_cli.errors import ArchitectureError, CheckpointError
from cnsn_cli.task import Task
from cnsn_cli.training.initial_weights import Start, from_file, from_publisher
from cnsn_cli.training.run import resume, train
from tests.commands.test_cli import one_line
from tests.conftest import TINY

ARCH = "torchvision:mobilenet_v3_small:width_mult=0.25"
TASK = Task.plain(classes=2)
CLASSIFIER = ("classifier.3.weight", "classifier.3.bias")
DRAWN = {f"head.{name}" for name in CLASSIFIER}  # in the network that is trained
SQUEEZENET = "torchvision:squeezenet1_1"  # trains fast; its last conv is the classifier


def published(classes: int = 1000) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = models.mobilenet_v3_small(num_classes=classes, width_mult=0.25).state_dict()
    return {name: tensor + 0.5 if "running_mean" in name else tensor for name, tensor in state.items()}


def squeezed() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return models.squeezenet1_1().state_dict()


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(squeezed(), path)
    return path


def tensors(backbone: Backbone) -> dict[str, torch.Tensor]:
    """The weights of `backbone` by their names in the original network."""
    state = torch.nn.ModuleDict({"units": backbone.units, "head": backbone.head}).state_dict()
    return {name.split(".", 2 if name.startswith("units") else 1)[-1]: t for name, t in state.items()}


def test_all_weights_but_those_of_another_classifier_are_taken(tmp_path):
    save_file(published(), tmp_path / "weights.safetensors")
    backbone, start = registry.find(ARCH).build(TASK), from_file(tmp_path / "weights.safetensors")
    start.fill(backbone, 2)
    assert set(start.drawn) == DRAWN
    found, given = tensors(backbone), published()
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given if name not in CLASSIFIER)
    start = Start(published(2), "two classes")
    start.fill(backbone, 2)
    assert start.drawn == ()
    assert torch.equal(tensors(backbone)[CLASSIFIER[0]], published(2)[CLASSIFIER[0]])


def test_a_builtin_backbone_takes_its_own_names(checkpoint):
    backbone = registry.find(TINY).build(TASK)
    from_file(checkpoint).fill(backbone, 2)
    own = torch.nn.ModuleDict({"units": backbone.units, "head": backbone.head}).state_dict()
    assert all(torch.equal(own[name], load_file(checkpoint)[name]) for name in own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("features.1.block.0.0.weight"),
            "weights of another network, without 'featu",
        ),
        (
            lambda state: state.update({"features.0.0.weight": torch.ones(9, 3, 3, 3)}),
            r"has shape \(9, 3, 3, 3\)",
        ),
        (lambda state: state.update({"classifier.0.weight": torch.ones(3, 3)}), r"has shape \(3, 3\), not"),
    ],
)
def test_weights_of_another_network(change, message):
    state = published()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        Start(state, "x").fill(registry.find(ARCH).build(TASK), 2)


def test_a_larger_network_of_the_same_family_is_refused(cnsn, image_folder, tmp_path):
    """A ResNet-34 has all that a ResNet-18 has, in the same shapes, and 96 tensors more."""
    save_file(models.resnet34().state_dict(), tmp_path / "weights.safetensors")
    result = cnsn(
        "train", "--arch", "torchvision:resnet18", "--init", tmp_path / "weights.safetensors",
        *words(image_folder, tmp_path / "run"),
    )  # fmt: skip
    assert one_line(result) == (
        f"{tmp_path}/weights.safetensors: weights of another network: "
        "this one has no place for 96 of 218 tensors: "
        "'layer1.2.bn1.bias', 'layer1.2.bn1.num_batches_tracked', 'layer1.2.bn1.running_mean', ..."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "_orig_mod.",
        "backbone.",
        "net.",
        "encoder.",
        "module._orig_mod.",
        "state_dict.model.",
    ],
)
def test_the_prefix_of_a_wrapper(tmp_path, prefix):
    spare = ("aux1.conv.weight", "AuxLogits.fc.bias", "aux_classifier.0.weight")
    given = {**published(), **{name: torch.ones(3) for name in spare}}
    save_file({prefix + name: tensor for name, tensor in given.items()}, tmp_path / "x.safetensors")
    backbone, start = registry.find(ARCH).build(TASK), from_file(tmp_path / "x.safetensors")
    start.fill(backbone, 2)
    assert set(start.drawn) == DRAWN
    found = tensors(backbone)
    assert all(torch.equal(found[name], given[name]) for name in found if name not in CLASSIFIER)


def test_names_that_wrappers_inside_a_network_made(tmp_path):
    """torch.compile, FSDP and torch's AveragedModel."""
    network = models.mobilenet_v3_small(num_classes=2, width_mult=0.25)
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.features[3] = torch.compile(network.features[3])
    averaged = torch.optim.swa_utils.AveragedModel(network).state_dict()
    assert {"n_averaged", "module.features.3._orig_mod.block.0.0.weight"} <= averaged.keys()
    save_file(averaged, tmp_path / "x.safetensors")
    backbone = registry.find(ARCH).build(TASK)
    from_file(tmp_path / "x.safetensors").fill(backbone, 2)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(backbone).items())


@pytest.mark.parametrize(
    "others", [("projector.0.weight",), ("model.layer9.weight",), ("ema.features.0.0.weight", "x")]
)
def test_tensors_that_are_left_over_are_named_as_the_file_names_them(others):
    given = {f"model.{name}": tensor for name, tensor in published().items()}
    given |= {name: torch.ones(2) for name in others}
    names = ", ".join(map(repr, others))
    with pytest.raises(
        CheckpointError, match=f"no place for {len(others)} of {len(given)} tensors: {names}$"
    ):
        Start(given, "x").fill(registry.find(ARCH).build(TASK), 2)


class Spare(nn.Module):
    """Has an `encoder.` of its own, and a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.fc, self.projector = nn.Linear(4, 2), nn.Linear(4, 9)

    def forward(self, images):
        return self.fc(self.encoder(images).mean((2, 3)))


def test_a_layer_that_the_original_does_not_use_is_no_other_network():
    given = Spare().state_dict()
    for prefix in ("", "encoder."):
        backbone = traced(Spare(), TASK)
        Start({prefix + name: tensor for name, tensor in given.items()}, "x").fill(backbone, 2)
        assert all(torch.equal(tensor, given[name]) for name, tensor in tensors(backbone).items())


class Meaning(nn.Module):
    """A network with layers `fc` and `head.fc`, a constant mean that its own files lack, and a scale."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.mean = torch.full((3, 1, 1), number)
        self.register_buffer("scale", torch.full((3,), number))
        self.convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.fc, self.head = nn.Linear(4, 4), nn.ModuleDict({"fc": nn.Linear(4, 2)})

    def forward(self, images):
        return self.head["fc"](
            self.fc(self.convs((images - self.mean) * self.scale[:, None, None]).mean((2, 3)))
        )


def test_names_of_the_original_may_look_like_ours_and_its_plain_tensors_stay():
    network, other = Meaning(0.25), Meaning(0.5)
    backbone = traced(other, TASK)
    assert backbone.head.state_dict().keys() >= {"fc.weight", "head.fc.weight"}
    Start(network.state_dict(), "the original").fill(backbone, 2)
    whole = torch.nn.ModuleDict({"units": backbone.units, "head": backbone.head})
    images = torch.randn(2, *TASK.image_shape)
    network.mean = torch.full((3, 1, 1), 0.5)
    assert torch.equal(nn.Sequential(*backbone.units, backbone.head)(images), network(images))
    own = {name: tensor + 1 for name, tensor in whole.state_dict().items()}
    Start(own, "a file of ours").fill(backbone, 2)  # a file of ours holds the mean
    assert all(torch.equal(tensor, own[name]) for name, tensor in whole.state_dict().items())


def words(image_folder, out):
    return ("--exits", "3,9", "--data", image_folder, "--recipe", "quick", "--batch-size", 8, "--out", out)


def test_from_the_command_line_and_on_without_the_file(cnsn, weights, image_folder, tmp_path):
    run = tmp_path / "run"
    still = ("--epochs", 1, "--lr", 1e-12, "--momentum", 0, "--weight-decay", 0, "--warmup-epochs", 0)
    result = cnsn("train", "--arch", SQUEEZENET, "--init", weights, *words(image_folder, run), *still)
    assert result.code == 0, result.err
    told = "the classifier starts at random, the weights are for other classes"
    assert re.search(
        rf"{told}: units\.\d+\.classifier\.1\.weight, units\.\d+\.classifier\.1\.bias", result.err
    )
    kept, given = load_file(run / "last.safetensors"), squeezed()
    name = "features.4.expand3x3.weight"
    assert torch.allclose(next(t for n, t in kept.items() if n.endswith(name)), given[name], atol=1e-6)
    assert "cnsn train" not in cnsn("card", run / "last.safetensors").out
    weights.unlink()
    result = cnsn("train", "--resume", run, "--epochs", 2, "--override")
    assert result.code == 0, result.err
    assert "starts at random" not in result.err
    moved = ("train", "--resume", run, "--init", "other.safetensors", "--epochs", 3)
    assert "cannot go on with init" in one_line(cnsn(*moved))


def test_what_torchvision_publishes(cnsn, capsys, monkeypatch, quick, image_folder, tmp_path):
    """A resumed run does not ask for published weights again."""
    asked = []

    def fetched(self, *arguments, **options):
        asked.append(self)
        print("Downloading")  # as torch does, on stdout, which is for results
        return squeezed()

    monkeypatch.setattr(models._api.WeightsEnum, "get_state_dict", fetched)
    start = from_publisher(registry.find(SQUEEZENET), TASK)
    assert asked == [models.SqueezeNet1_1_Weights.DEFAULT]
    assert capsys.readouterr() == ("", "Downloading\n")
    assert all(torch.equal(tensor, start.weights[name]) for name, tensor in squeezed().items())
    events = []
    train(SQUEEZENET, (9,), str(image_folder), quick, tmp_path, pretrained=True, watch=events.append)
    assert len(events[0].drawn) == 2
    assert " --pretrained " in cnsn("card", tmp_path / "best.safetensors").out
    assert "weights of the original network" in cnsn("info", tmp_path / "best.safetensors").out
    resume(tmp_path, {"epochs": 2}, override=True, watch=events.append)
    assert len(asked) == 2


def test_googlenet_is_taken_without_its_other_classifiers(monkeypatch):
    state = models.googlenet(init_weights=False).state_dict()
    monkeypatch.setattr(models._api.WeightsEnum, "get_state_dict", lambda self, *a, **b: state)
    task = Task.plain(classes=7)
    start = from_publisher(registry.find("torchvision:googlenet"), task)
    start.fill(registry.find("torchvision:googlenet").build(task), 7)
    assert set(start.drawn) == {"head.fc.weight", "head.fc.bias"}


def test_what_timm_publishes(monkeypatch):
    import timm

    torch.manual_seed(5)
    state = timm.create_model("lcnet_050").state_dict()
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *a, **b: dict(state))
    start = from_publisher(registry.find("timm:lcnet_050"), TASK)
    assert all(torch.equal(tensor, start.weights[name]) for name, tensor in state.items())
    start.fill(registry.find("timm:lcnet_050").build(TASK), 2)
    assert set(start.drawn) == {"head.classifier.weight", "head.classifier.bias"}


def test_weights_that_cannot_be_had(cnsn, monkeypatch, image_folder, tmp_path):
    def offline(self, *arguments, **options):
        print("Downloading", file=sys.stderr)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(models._api.WeightsEnum, "get_state_dict", offline)
    rest = words(image_folder, tmp_path / "run")
    message = one_line(cnsn("train", "--arch", ARCH, "--pretrained", *rest))
    assert message == (
        f"cannot get pretrained weights of {ARCH!r}: <urlopen error no network>; "
        "give a file of weights with --init"
    )
    message = one_line(cnsn("train", "--arch", TINY, "--pretrained", *rest))
    assert message == "vgg11 has no pretrained weights: give a file of weights with --init"
    message = one_line(cnsn("train", "--arch", ARCH, "--init", tmp_path / "none.safetensors", *rest))
    assert "none.safetensors: No such file" in message
    message = one_line(cnsn("train", "--arch", ARCH, "--pretrained", "--init", "x", *rest))
    assert message == "--init and --pretrained both say what a network starts with: give one of them"
    assert not (tmp_path / "run").exists()


def test_sub_models_on_a_base_that_started_with_weights(weights, quick, image_folder, tmp_path):
    train(SQUEEZENET, (), str(image_folder), quick, tmp_path / "base", init=weights)
    base = tmp_path / "base" / "best.safetensors"
    train(SQUEEZENET, (9,), str(image_folder), quick, tmp_path / "run", freeze_base=base)
    before, after = load_file(base), load_file(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_no_weights_for_an_unknown_architecture():
    with pytest.raises(ArchitectureError, match="unknown architecture 'nothing'"):
        from_publisher(registry.find("nothing"), TASK)
