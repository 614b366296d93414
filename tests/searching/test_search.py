"""A search from its start to its figures, stopped and resumed, and inside a trained network."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch

from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.errors import ArgumentError, CheckpointError, DataError
from cnsn_cli.evaluation.accuracy import evaluate_file
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.files.checkpoint import load
from cnsn_cli.network.recalibration import recalibrate
from cnsn_cli.searching.inside import search_inside, with_every_part
from cnsn_cli.searching.ranking import rank
from cnsn_cli.searching.search import resume, search, shortened
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import train
from cnsn_cli.training.started import Started
from tests.commands.test_cli import one_line
from tests.conftest import TINY, built
from tests.training.test_resume import Stop, stop_at_step

BUDGETS = (450_000, 200_000)
EXITS = (2, "@0.5", "2@0.5")


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("quick", {"batch_size": 16, "lr": 0.02, "val_split": 0.25, "seed": 4})


def searched(folder, data, recipe, **more):
    return search(TINY, str(data), BUDGETS, folder, recipe, 2, (0.5,), **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, image_folder, recipe):
    """The folder of a search that was not stopped, and what it found."""
    folder = tmp_path_factory.mktemp("search") / "whole"
    return folder, searched(folder, image_folder, recipe)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, image_folder, quick):
    folder = tmp_path_factory.mktemp("narrow")
    train(TINY, EXITS, str(image_folder), quick, folder)
    return folder / "last.safetensors"


def test_what_a_search_finds(whole):
    folder, found = whole
    base, *candidates = found.results
    assert base.name == "base"
    assert found.images == 16  # a quarter of 64
    for pick in found.picks:
        serving = [c for c in candidates if 0.6 * pick.budget <= c.macs <= pick.budget]
        best = max(candidate.accuracy for candidate in serving)
        chosen = {candidate.name: candidate for candidate in serving}[pick.best]
        assert chosen.accuracy == best
        rest = [candidate.accuracy for candidate in serving if candidate.name != pick.best]
        assert pick.distance == pytest.approx(best - max(rest))
    names = {pick.best for pick in found.picks}
    assert set(found.exits.split(",")) == names
    assert json.loads((folder / "search.json").read_text()) == asdict(found)
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    state = read_state(folder / "state.safetensors")
    assert state.request.budgets == BUDGETS
    assert [result.name for result in state.epochs()[0].results] == ["base"]
    assert state.request.recipe.distill == "base"


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_search_that_was_stopped_finds_the_same(whole, step, image_folder, recipe, tmp_path):
    """48 images make three steps an epoch; the figures are those of `whole` to the last digit."""
    folder, found = whole
    if step < 5:
        with pytest.raises(Stop):
            searched(tmp_path, image_folder, recipe, save_every="1", watch=stop_at_step(step))
        assert resume(tmp_path) == found
    else:  # nothing is left but the evaluation
        assert resume(folder) == found


def test_figures_against_an_independent_count(image_folder):
    data = load_dataset(str(image_folder))
    network = built(TINY, EXITS, data.task)
    costs = model_costs(network)
    found = rank(network.models(), costs, data.train, data.test, (costs[1].macs, costs[0].macs))
    right = []
    for model in network.models():
        if model.name != "base":
            recalibrate([model], data.train, 10)
        with torch.no_grad():
            guesses = model.eval().logits(data.test.pixels).argmax(1)
        right.append((guesses == data.test.labels).double().numpy())
    for result, hits in zip(found.results, right, strict=True):
        assert result.accuracy == pytest.approx(hits.mean())
    names = [result.name for result in found.results]
    for pick in found.picks:
        if pick.runner_up is not None:
            distances = right[names.index(pick.best)] - right[names.index(pick.runner_up)]
            assert pick.distance == pytest.approx(distances.mean())
            assert pick.error == pytest.approx(np.std(distances, ddof=1) / len(distances) ** 0.5)


def test_searches_and_runs_are_not_mixed_up(cnsn, whole, checkpoint):
    folder, _ = whole
    message = one_line(cnsn("train", "--resume", folder))
    assert message == f"{folder} holds a search: go on with cnsn search --resume {folder}"
    message = one_line(cnsn("search", "--resume", checkpoint.parent))
    assert message.endswith(f"holds a training run: go on with cnsn train --resume {checkpoint.parent}")
    for wrong in (
        ("--resume", folder, "--from", checkpoint),
        ("--arch", TINY, "--max-macs", "1M", "--override"),
    ):
        assert cnsn("search", *wrong).code == 2
    with pytest.raises(CheckpointError, match="No such file"):
        resume(folder / "nothing")


def test_the_command(cnsn, image_folder, tmp_path):
    words = ("--arch", TINY, "--data", image_folder, "--max-macs", "450k,200k", "--recipe", "quick")
    more = (
        "--widths",
        "0.5",
        "--epochs",
        1,
        "--limit-images",
        40,
        "--out",
        tmp_path / "out",
        "--image-size",
        32,
    )
    result = cnsn("search", *words, *more)
    assert result.code == 0, result.err
    assert f"to train these: cnsn train --data {image_folder} " in result.out
    content = json.loads((tmp_path / "out" / "search.json").read_text())
    exits = content["exits"]
    assert f"--recipe quick --arch {TINY} --image-size 32 --exits {exits}\n" in result.out
    for pick in content["picks"]:
        assert f"{pick['budget']:,} MACs: {pick['best']} " in result.out
    again = json.loads(cnsn("search", "--resume", tmp_path / "out", "--json").out)
    assert {**content, "command": None} == again
    assert "holds a run already" in one_line(cnsn("search", *words, *more))
    assert cnsn("search", "--arch", TINY).code == 2
    assert cnsn("search", "--resume", tmp_path, "--arch", TINY).code == 2
    assert "is not an amount" in cnsn("search", "--arch", TINY, "--max-macs", "1M,many").err


def test_the_first_photo_cannot_be_read(whole, image_folder, recipe, tmp_path):
    """The next photo decides the size of all images, and so the MACs of the candidates."""
    photos = tmp_path / "photos"
    shutil.copytree(image_folder, photos)
    first = photos / "train" / "bright" / "00.png"
    first.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00\.png"):
        searched(tmp_path / "out", photos, recipe)
    events: list[object] = []
    found = searched(tmp_path / "out", photos, recipe, skip_bad=True, watch=events.append)
    (line,) = [line for event in events if isinstance(event, Started) for line in event.skipped]
    assert str(first) in line
    assert [result.macs for result in found.results] == [result.macs for result in whole[1].results]


def test_what_a_search_cannot_be_told(image_folder, recipe, tmp_path):
    with pytest.raises(ArgumentError, match="max_macs is empty: give at least one budget"):
        search(TINY, str(image_folder), (), tmp_path)
    with pytest.raises(ArgumentError, match="a search has no freeze_base: leave it out"):
        searched(tmp_path, image_folder, recipe, freeze_base="x")
    assert shortened(load_recipe("finetune"), 3).step_down_init == "random"
    assert shortened(load_recipe("finetune"), 3, pretrained=True).pretrained_lr == 0.1


def test_inside_a_network_with_widths(narrow, image_folder):
    """Trained sub-models have the figures of `cnsn eval --recalibrate`; the width between is new."""
    found = search_inside(narrow, (0.5, 0.75))
    assert [r.name for r in found.results] == ["base", "2", "@0.75", "2@0.75", "@0.5", "2@0.5"]
    assert (found.selection, found.images, found.picks, found.exits) == ("test", 16, [], "")
    report = evaluate_file(narrow, recalibrate=10)
    expected = dict(zip(("base", *map(str, EXITS)), report.results, strict=True))
    for result in found.results:
        if result.name in EXITS or result.name == "2":
            assert result.accuracy == expected[result.name].accuracy, result.name
    whole = load(narrow)
    grid = with_every_part(whole, TINY, None, (0.75,))
    conv = {f"{p.drops}@{p.width:g}": p.step_down[0] for p in grid.submodels if p.step_down is not None}
    trained = whole.submodels[0].step_down[0].weight
    between = conv["2@0.75"].weight
    assert torch.equal(between, trained[: len(between)])
    assert len(between) == round(0.75 * len(trained))


def test_inside_a_network_without_widths(cnsn, checkpoint, narrow):
    message = one_line(cnsn("search", "--from", checkpoint))
    assert message.endswith("has no narrow sub-models: give a network that was trained with widths")
    result = cnsn("search", "--from", narrow, "--widths", "0.5,0.75", "--max-macs", "450k")
    assert result.code == 0, result.err
    assert "450,000 MACs: " in result.out
    assert "accuracy on 16 test images" in result.out
    assert cnsn("search", "--from", narrow, "--arch", TINY).code == 2
    message = one_line(cnsn("search", "--from", narrow, "--widths", "0.5", "--max-macs", "5"))
    assert message.startswith(
        "5 MACs are fewer than any sub-model needs: the smallest sub-model, 2@0.5, takes "
    )
