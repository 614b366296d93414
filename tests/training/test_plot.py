"""Pictures of runs: the tests read texts, points and colours back from an SVG."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnsn_cli.errors import ArgumentError, OutputError
from cnsn_cli.training import plot as pictures
from cnsn_cli.training.plot import plot, read_story
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.run import train
from tests.commands.test_cli import one_line
from tests.conftest import TINY


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, quick: Recipe) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(TINY, (), str(image_folder), quick, folder)
    return folder


def texts(path: Path) -> str:
    """The texts in an SVG: matplotlib draws them as outlines, and writes each text into a comment."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(path, parser)
    return "\n".join(str(node.text).strip() for node in tree.iter() if callable(node.tag))


def test_training_leaves_a_picture_of_the_run(checkpoint):
    with Image.open(checkpoint.parent / "plot.png") as image:
        assert image.width > 1000


def test_one_run_shows_its_models(cnsn, checkpoint, tmp_path):
    result = cnsn("plot", checkpoint.parent, "-o", tmp_path / "a.svg")
    assert result.out == f"written: {tmp_path / 'a.svg'}\n"
    shown = texts(tmp_path / "a.svg").splitlines()
    for word in ("base", "k=1", "k=4", "epoch", "million MACs for one image"):
        assert word in shown
    assert "1" in shown  # the only epoch, not 0.96 and 0.98
    assert "accuracy on the test images, %" in shown
    plot([checkpoint.parent], tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_several_runs_and_a_baseline(cnsn, checkpoint, baseline, tmp_path):
    # The name is shown as it is: not as a formula, and without a warning.
    run = shutil.copytree(checkpoint.parent, tmp_path / "ours $x$ \u65e5")
    assert cnsn("plot", run, baseline, checkpoint, "-o", tmp_path / "a.svg").code == 0
    shown = texts(tmp_path / "a.svg").splitlines()
    names = (run.name, f"{checkpoint.parent.name}/best.safetensors", f"{baseline.name} (baseline)")
    for word in (*names, "k=4"):
        assert word in shown


def test_a_model_looks_the_same_in_every_run(checkpoint, baseline):
    stories = [read_story(baseline, "plain"), read_story(checkpoint.parent, "ours")]
    ranks = [[pictures._rank(stories, model) for model in story.metadata.models] for story in stories]
    assert ranks == [[0], [0, 1, 2]]
    colours = [[pictures._colour(stories, n, rank) for rank in ranks[n]] for n in (0, 1)]
    assert colours == [["#000000"], [pictures.COLOURS[1]] * 3]


def test_twelve_models_and_twelve_runs_look_different(checkpoint):
    story = read_story(checkpoint.parent, "run")
    models = [story.metadata.models[0].model_copy(update={"drops": k}) for k in range(12)]
    metadata = story.metadata.model_copy(update={"models": models})
    epochs = [
        line.model_copy(update={"train": line.train[:1] * 12, "results": line.results[:1] * 12})
        for line in story.epochs
    ]
    wide = story._replace(metadata=metadata, epochs=epochs)
    points, curves = Figure().subplots(1, 2)
    pictures._draw_trade_off(points, [wide])
    pictures._draw_curves(curves, [wide])
    keys = [axes.get_legend().legend_handles for axes in (points, curves)]
    for handles in keys:
        assert len({handle.get_color() for handle in handles}) == 12
    assert len({handle.get_marker() for handle in keys[0]}) == 12
    assert len({str(handle._unscaled_dash_pattern) for handle in keys[1]}) == 12
    runs = [story._replace(name=str(number)) for number in range(12)]
    assert len({pictures._colour(runs, number, 0) for number in range(12)}) == 12


def test_a_checkpoint_has_no_curves(checkpoint, tmp_path):
    plot([checkpoint], tmp_path / "a.svg")
    assert "epoch" not in texts(tmp_path / "a.svg").splitlines()


def test_the_curves_are_those_of_the_metrics(checkpoint):
    lines = [json.loads(line) for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
    story = read_story(checkpoint.parent, "run")
    assert [line.epoch for line in story.epochs] == [1]
    assert [r.accuracy for r in story.epochs[0].results] == [r["accuracy"] for r in lines[0]["results"]]
    assert [r.accuracy for r in story.epochs[0].train] == [r["accuracy"] for r in lines[0]["train"]]


def test_bad_input_for_plot(cnsn, checkpoint, baseline, tmp_path):
    def refused(*words: object) -> str:
        return one_line(cnsn("plot", *words))

    target = tmp_path / "a.png"
    assert "end it in .png or .svg" in refused(checkpoint, "-o", tmp_path / "a.gif")
    assert "create it first" in refused(checkpoint, "-o", tmp_path / "no" / "a.png")
    assert "cannot read" in refused(tmp_path, "-o", target)
    run = shutil.copytree(checkpoint.parent, tmp_path / "run")
    (run / "metrics.jsonl").write_text("{")
    assert f"cannot read epochs from {run}/metrics.jsonl" in refused(run, "-o", target)
    shutil.copy(baseline / "metrics.jsonl", run)
    wrong = "metrics.jsonl has other models than best.safetensors, which has base, submodel0, submodel1"
    assert wrong in refused(run, "-o", target)
    assert not target.exists()
    target.write_text("mine")
    assert "give --force" in refused(checkpoint, "-o", target)


def test_python_users_draw_one_run_or_several(checkpoint, baseline, tmp_path):
    run = str(checkpoint.parent)
    for name, runs in (("a.svg", run), ("b.svg", [checkpoint.parent]), ("c.svg", (run, baseline))):
        plot(runs, str(tmp_path / name))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert f"{baseline.name} (baseline)" in texts(tmp_path / "c.svg").splitlines()
    with pytest.raises(OutputError, match=r"a\.svg exists"):
        plot(run, tmp_path / "a.svg")
    plot(baseline, tmp_path / "a.svg", force=True)
    assert "k=4" not in texts(tmp_path / "a.svg").splitlines()
    with pytest.raises(ArgumentError, match=r"^runs is empty or has"):
        plot([], tmp_path / "d.svg")
