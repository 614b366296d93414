"""metrics.jsonl: lines are read as they were written."""

import json

import pytest
from pydantic import ValidationError

from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.training.metrics import Epoch, Pull, line_of, parse_lines

EPOCH = Epoch(
    epoch=1,
    lr=0.1,
    seconds=2.5,
    images_per_second=100.0,
    train=[ModelResult("base", 0.5, 1.0), ModelResult("submodel0", 0.25, 2.0)],
    results=[ModelResult("base", 0.75, 0.5), ModelResult("submodel0", 0.25, 1.5)],
    pulls=[Pull("submodel0", 1.0, 0.3, 0.2, -0.1)],
    phases={"training": 1.5, "waiting for the disk": 0.25},
)


def test_a_line_is_read_as_it_was_written():
    line = line_of(EPOCH, "validation")
    assert line.mean_accuracy == 0.5
    text = line.to_json()
    assert parse_lines(text * 2) == [line, line]
    assert list(json.loads(text)) == [
        "epoch", "lr", "seconds", "images_per_second", "train", "results", "pulls", "selection", "phases",
    ]  # fmt: skip
    assert json.loads(text)["results"][1] == {"name": "submodel0", "accuracy": 0.25, "loss": 1.5}


def test_the_numbers_of_an_epoch():
    assert EPOCH.numbers() == {
        "lr": 0.1, "seconds": 2.5, "images_per_second": 100.0,
        "train/accuracy/base": 0.5, "train/loss/base": 1.0,
        "train/accuracy/submodel0": 0.25, "train/loss/submodel0": 2.0,
        "results/accuracy/base": 0.75, "results/loss/base": 0.5,
        "results/accuracy/submodel0": 0.25, "results/loss/submodel0": 1.5,
        "pulls/scale/submodel0": 1.0, "pulls/norm/submodel0": 0.3,
        "pulls/base_norm/submodel0": 0.2, "pulls/cosine/submodel0": -0.1,
        "phases/training": 1.5, "phases/waiting_for_the_disk": 0.25,
    }  # fmt: skip


def test_what_is_no_line():
    with pytest.raises(ValidationError, match="validation errors for Line"):
        parse_lines("{}")
