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
)


def test_a_line_is_read_as_it_was_written():
    line = line_of(EPOCH, "validation", {"training": 1.5})
    assert line.mean_accuracy == 0.5
    text = line.to_json()
    assert parse_lines(text * 2) == [line, line]
    assert list(json.loads(text)) == [
        "epoch", "lr", "seconds", "images_per_second", "train", "results", "pulls", "selection", "phases",
    ]  # fmt: skip
    assert json.loads(text)["results"][1] == {"name": "submodel0", "accuracy": 0.25, "loss": 1.5}


def test_what_is_no_line():
    with pytest.raises(ValidationError, match="validation errors for Line"):
        parse_lines("{}")
