"""Costs: compared with counts by hand, and with torch's own flop counter."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.meta import run_blank
from cnsn_cli.evaluation.costs import blank_network, count_macs, layer_costs, model_costs
from cnsn_cli.files.checkpoint import load
from cnsn_cli.task import Task

TASK = Task.plain()
DEEP = ("resnet101", "resnet110", "resnet152")


def test_vgg16_by_hand():
    base, k2, k7 = count_macs("vgg16", (2, 7))
    assert [base.macs, k2.macs, k7.macs] == [313_201_664, 273_880_064, 123_474_944]
    # Table 1 of the paper, in G; its sub-model rows are swapped.
    assert [round(cost.operations / 1e9, 3) for cost in (base, k2, k7)] == [0.314, 0.275, 0.124]
    assert [cost.drops for cost in (base, k2, k7)] == [0, 2, 7]


def test_operations_by_hand():
    """vgg11 at width 1/64 has 1, 2, 4, 4, 8, 8, 8, 8 channels."""
    (base,) = count_macs("vgg11:width=0.015625", ())
    outputs = [1 * 1024, 2 * 256, 4 * 64, 4 * 64, 8 * 16, 8 * 16, 8 * 4, 8 * 4]
    fan_in = [27, 9, 18, 36, 36, 72, 72, 72]
    macs = sum(out * fan for out, fan in zip(outputs, fan_in, strict=True)) + 8 * 10
    pooled = outputs[0] + outputs[1] + outputs[3] + outputs[5] + outputs[7]
    assert base.macs == macs
    assert base.operations == macs + 4 * sum(outputs) + pooled  # bias 1, BN 2, ReLU 1
    weights = [1 * 27, 2 * 9, 4 * 18, 4 * 36, 8 * 36, 8 * 72, 8 * 72, 8 * 72]
    channels = 1 + 2 + 4 + 4 + 8 * 4
    assert base.parameters == sum(weights) + 3 * channels + 8 * 10 + 10
    assert base.bytes == 4 * base.parameters + (4 + 4) * channels + 8 * 8  # mean, var; eight int64 counters


def test_operations_of_convs_without_bias_by_hand():
    """resnet20 at width 1/16: 1, 2 and 4 channels; a block has two convs, two BNs and two ReLUs."""
    (base,) = count_macs("resnet20:width=0.0625", ())
    outputs = [1024] * 7 + [512] * 6 + [256] * 6
    fan_in = [27] + [9] * 6 + [9] + [18] * 5 + [18] + [36] * 5
    macs = sum(out * fan for out, fan in zip(outputs, fan_in, strict=True)) + 4 * 10
    assert (base.macs, base.operations) == (macs, macs + 3 * sum(outputs))


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(name, marks=pytest.mark.long if name in DEEP else ())
        for name in sorted(registry.architectures().keys() - {"torchvision", "timm"})
    ],
)
def test_macs_agree_with_the_flop_counter_of_torch(arch):
    network = blank_network(arch, None, TASK).eval()
    costs = model_costs(network)
    models = network.models()
    for index in {0, 1, len(models) // 2, len(models) - 1}:
        with FlopCounterMode(display=False) as counter:
            models[index](torch.empty(1, 3, 32, 32, device="meta"))
        assert costs[index].macs * 2 == counter.get_total_flops(), costs[index].name


def test_every_detach_point_without_exits():
    costs = count_macs("resnet18", None)
    assert [cost.name for cost in costs] == ["base"] + [f"drop{k}" for k in range(1, 16, 2)]
    assert [cost.macs for cost in costs] == sorted((cost.macs for cost in costs), reverse=True)
    assert costs[3] == count_macs("resnet18", (5,))[1].__class__(**{**vars(costs[3]), "name": "drop5"})
    assert count_macs("resnet18", (5,))[1].macs == costs[3].macs


def test_layers_add_up_to_the_base():
    network = blank_network("resnet20", (3, 7), TASK)
    layers, (base, first, second) = layer_costs(network), model_costs(network)
    own = [layer for layer in layers if "step_down" not in layer.name]
    assert sum(layer.macs for layer in own) == base.macs
    assert sum(layer.parameters for layer in own) == base.parameters
    assert [layer.name for layer in layers[-2:]] == ["submodel0.step_down", "submodel1.step_down"]
    kept = sum(layer.macs for layer in own if layer.name not in ("units.0", "units.1"))
    assert first.macs == kept + layers[-2].macs
    assert layers[3].shape == (16, 32, 32)
    assert second.macs < first.macs


def test_image_size_and_classes_count():
    small, large = (count_macs("vgg11", (), Task.plain(image_size=size))[0] for size in (32, 64))
    head = 512 * 10
    assert large.macs - head == 4 * (small.macs - head)
    assert count_macs("vgg11", (), Task.plain(classes=100))[0].macs - small.macs == 512 * 90


def test_a_detached_model_costs_what_the_submodel_cost(checkpoint, tmp_path):
    from cnsn_cli.deploy.detach import detach

    detach(checkpoint, "1", tmp_path / "small.safetensors")
    (alone,) = model_costs(load(tmp_path / "small.safetensors"))
    assert alone == model_costs(load(checkpoint))[2]


def test_counting_leaves_the_network_as_it_was(checkpoint):
    network = load(checkpoint)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model_costs(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


TABLE = (Path(__file__).parents[2] / "docs" / "ARCHITECTURES.md").read_text()
LIBRARIES = re.split(r"^## (\w+)", TABLE, flags=re.M)[1:]
ROWS = [
    (library, *match.groups())
    for library, text in zip(LIBRARIES[::2], LIBRARIES[1::2], strict=True)
    for match in re.finditer(
        r"^\| (\S+) \| (\d+) \| \d+ \| .* \| ([\d.]+) \| (\d+): ([\d.]+) \|$", text, re.M
    )
]


def test_the_table_of_architectures_has_rows():
    assert len(ROWS) > 130


@pytest.mark.long
@pytest.mark.parametrize(("library", "name", "size", "base", "drops", "cut"), ROWS)
def test_the_table_of_architectures(library, name, size, base, drops, cut):
    """Each row against torch's own counter, which runs the network on the meta device."""
    task = Task.plain(classes=1000, image_size=int(size))
    network = blank_network(f"{library}:{name}", (int(drops),), task).eval()
    for model, shown in zip(network.models(), (base, cut), strict=True):
        with FlopCounterMode(display=False) as counter:
            run_blank(model, torch.empty(1, *task.image_shape, device="meta"))
        assert f"{counter.get_total_flops() / 2e9:.2f}" == shown, model.name
