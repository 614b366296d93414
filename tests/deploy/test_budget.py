"""Choosing by limits, among the models of the paper's table 1 with made-up latencies."""

import json

import pytest

from cnsn_cli.deploy.budget import Candidate, choose
from cnsn_cli.errors import BudgetError
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import read_header
from tests.commands.test_cli import one_line

BASE = Candidate("base", 313_201_664, 58_950_000, 0.9267, 0.020)
FIRST = Candidate("submodel0", 273_880_064, 58_800_000, 0.9115, 0.017)
SECOND = Candidate("submodel1", 123_474_944, 52_190_000, 0.7738, 0.008)
PAPER = [BASE, FIRST, SECOND]


@pytest.mark.parametrize(
    ("budget", "name", "reason"),
    [
        ({"macs": 313_201_664}, "base", "the most accurate of the 3 models with at most 313,201,664 MACs"),
        ({"macs": 313_201_663}, "submodel0", "it has 273,880,064 MACs, 91.15% accuracy"),
        ({"macs": 150e6}, "submodel1", "the only model with at most 150,000,000 MACs"),
        ({"bytes": 58_800_000}, "submodel0", "of the 2 models with at most 58,800,000 bytes"),
        ({"latency": 0.008}, "submodel1", "at most 8 ms: it has 8 ms, 77.38% accuracy"),
        ({"accuracy": 0.9}, "submodel0", "the smallest of the 2 models with at least 90.00% accuracy"),
        ({"accuracy": 0.0}, "submodel1", "the smallest of the 3 models"),
        ({"macs": 300e6, "accuracy": 0.9}, "submodel0", "at most 300,000,000 MACs and at least 90.00% acc"),
    ],
)
def test_the_choice_and_why(budget, name, reason):
    choice = choose(PAPER, budget)
    assert choice.name == name
    assert choice.reason.startswith(f"{name} is the ")
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("budget", "nearest"),
    [
        ({"macs": 100e6}, "submodel1 comes nearest, with 123,474,944 MACs, 77.38% accuracy"),
        ({"accuracy": 0.95}, "base comes nearest, with 92.67% accuracy"),
        # submodel0 exceeds the MACs by 10 %, submodel1 misses the accuracy by 16 %, base the MACs by 25 %.
        ({"macs": 250e6, "accuracy": 0.9}, "submodel0 comes nearest, with 273,880,064 MACs, 91.15% accuracy"),
        ({"bytes": 0}, "base comes nearest"),
    ],
)
def test_where_none_fits_what_comes_nearest(budget, nearest):
    with pytest.raises(BudgetError, match=nearest):
        choose(PAPER, budget)


def test_equal_accuracy_goes_to_the_cheaper_and_unknown_to_the_larger():
    tied = [candidate._replace(accuracy=0.9) for candidate in PAPER]
    assert choose(tied, {"macs": 1e9}).name == "submodel1"
    unknown = [candidate._replace(accuracy=None) for candidate in PAPER]
    assert choose(unknown, {"macs": 300e6}).name == "submodel0"
    with pytest.raises(BudgetError, match=r": base comes nearest, with unknown accuracy$"):
        choose(unknown, {"accuracy": 0.1})


def test_detach_says_why(cnsn, checkpoint, tmp_path):
    models = read_metadata(checkpoint, read_header(checkpoint)).models
    best = max(models, key=lambda model: (model.accuracy, -model.macs))
    small = tmp_path / "s.safetensors"
    result = cnsn("detach", checkpoint, "--max-macs", "1G", "--max-latency", "10s", "-o", small)
    assert result.out.startswith(f"chosen: {best.name} is the most accurate of the 3 models with at most 1,0")
    words = ("--max-bytes", models[2].bytes, "-o", small, "--force", "--json")
    content = json.loads(cnsn("detach", checkpoint, *words).out)
    assert content["models"][0]["name"] == "submodel1"
    assert content["reason"].startswith("submodel1 is the only model with at most ")
    message = one_line(cnsn("detach", checkpoint, "--max-latency", "1us", "-o", tmp_path / "never"))
    assert message.startswith("no model has at most 0.001 ms: ")
    assert not (tmp_path / "never").exists()


def test_latency_is_that_of_bench(checkpoint, monkeypatch):
    from cnsn_cli.deploy.detach import choose_model
    from cnsn_cli.evaluation import latency

    models = read_metadata(checkpoint, read_header(checkpoint)).models
    times = dict(zip([m.name for m in models], (0.3, 0.1, 0.2), strict=True))
    monkeypatch.setattr(
        latency, "latencies", lambda models: {model.name: times[model.name] for model in models}
    )
    assert choose_model(checkpoint, {"latency": 0.15}).name == "submodel0"


def test_mac_tells_where_to_cut(cnsn, checkpoint):
    shown = cnsn("mac", "--arch", "vgg16", "--max-macs", "150M").out.splitlines()[-1]
    assert shown == (
        "chosen: drop7 is the largest of the 6 models with at most 150,000,000 MACs: it has 123,474,944 MACs"
    )
    content = json.loads(cnsn("mac", checkpoint, "--max-bytes", "1G", "--json").out)
    best = max(read_metadata(checkpoint, read_header(checkpoint)).models, key=lambda m: (m.accuracy, -m.macs))
    assert content["chosen"]["name"] == best.name
    message = one_line(cnsn("mac", "--arch", "vgg16", "--max-macs", "1M"))
    assert message.startswith("no model has at most 1,000,000 MACs: drop12 comes nearest, with 1")
