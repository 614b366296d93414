"""`cnsn mac --widths`: every detach point at every width."""

import json

import pytest

from cnsn_cli.backbones.registry import find
from cnsn_cli.evaluation.costs import count_macs
from cnsn_cli.evaluation.planning import plan
from cnsn_cli.task import Task
from tests.commands.test_cli import one_line

FAMILIES = ("vgg11", "resnet20", "resnet18", "resnet50")


@pytest.mark.parametrize("name", FAMILIES)
def test_costs_are_those_of_the_narrow_architecture(name):
    models, not_counted, different = plan(find(f"{name}:width=0.25"), (0.5,), None, Task.plain())
    assert "mean" in not_counted
    assert different == []
    wide, narrow = count_macs(f"{name}:width=0.25"), count_macs(f"{name}:width=0.125")
    figures = [(m.drops, m.macs, m.operations, m.parameters, m.bytes) for m in wide + narrow]
    found = [(m.drops, m.macs, m.operations, m.parameters, m.bytes) for m in models]
    assert found == figures
    assert [m.width for m in models] == [1.0] * len(wide) + [0.5] * len(narrow)


def test_vgg16_by_hand(cnsn):
    """conv + linear, as in the paper's table: base 313,201,664 and k=7 123,474,944."""
    words = ("mac", "--arch", "vgg16", "--exits", "2,7", "--widths", "0.25,0.5")
    models = json.loads(cnsn(*words, "--json").out)["models"]
    names = ["base", "2", "7", "@0.5", "2@0.5", "7@0.5", "@0.25", "2@0.25", "7@0.25"]
    assert [model["name"] for model in models] == names  # widths fall
    assert [models[0]["macs"], models[2]["macs"]] == [313_201_664, 123_474_944]
    # Half the channels: a quarter of the MACs, but half of those of the first conv and of the last layer.
    first, last = 3 * 9 * 64 * 32 * 32, 512 * 10
    assert models[3]["macs"] == (313_201_664 - first - last) // 4 + (first + last) // 2


def test_the_largest_of_each_kind(cnsn):
    words = ("mac", "--arch", "vgg16", "--exits", "2,7", "--widths", "0.5,0.25")
    assert json.loads(cnsn(*words, "--max-macs", "150M", "--json").out)["chosen"] == {
        "depth": "7", "width": "@0.5", "both": "2@0.5",
    }  # fmt: skip
    out = cnsn(*words, "--max-macs", "80M").out
    assert "not counted: mean" in out
    assert "cut in depth: no sub-model fits" in out
    assert "cut in width: @0.5 is the largest of the 2 models with at most 80,000,000 MACs" in out
    assert one_line(cnsn(*words, "--max-macs", "1M")).startswith(
        "no model has at most 1,000,000 MACs: 7@0.25 "
    )


@pytest.mark.parametrize("widths", ["", "0", "1", "1.5", "x", "0.5,0.5", "0.5,", "nan", "-0.5", "inf"])
def test_what_is_no_list_of_widths(cnsn, widths):
    result = cnsn("mac", "--arch", "vgg11", "--widths", widths)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_bad_input(cnsn, checkpoint):
    same = one_line(cnsn("mac", "--arch", "vgg11:width=0.02", "--widths", "0.9,0.89"))
    assert same == "widths 0.9 and 0.89 give vgg11:width=0.02 the same channels: leave one out"
    assert "has no option that narrows it" in one_line(
        cnsn("mac", "--arch", "torchvision:alexnet", "--image-size", 64, "--widths", "0.5")
    )
    assert "is no detach point" in one_line(
        cnsn("mac", "--arch", "vgg11", "--widths", "0.5", "--exits", "99")
    )
    assert cnsn("mac", checkpoint, "--widths", "0.5").code == 2
    assert cnsn("mac", "--arch", "vgg11", "--widths", "0.5", "--layers").code == 2
