"""`cnsn predict`, compared with `cnsn eval` and with the logits of the network."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import cnsn_cli
from cnsn_cli.deploy.detach import detach
from cnsn_cli.deploy.export import export
from cnsn_cli.errors import ArgumentError
from cnsn_cli.evaluation.accuracy import evaluate_file
from cnsn_cli.files.checkpoint import load
from tests.commands.test_cli import one_line


@pytest.fixture
def files(checkpoint, tmp_path):
    """Every kind of file that holds submodel1 -> the options that choose it."""
    detach(checkpoint, "1", tmp_path / "small.safetensors")
    export(checkpoint, "onnx", tmp_path / "small.onnx", "1")
    export(checkpoint, "onnx", tmp_path / "pixels.onnx", "1", with_preprocess=True)
    alone = {tmp_path / name: () for name in ("small.safetensors", "small.onnx", "pixels.onnx")}
    return {checkpoint: ("--submodel", "1"), **alone}


def test_the_accuracy_of_predict_is_that_of_eval(cnsn, files, checkpoint, image_folder):
    expected = evaluate_file(checkpoint).results[2].accuracy
    for file, words in files.items():
        content = json.loads(cnsn("predict", file, image_folder / "test", "--json", *words).out)
        assert content["model"] == "submodel1"
        images = content["images"]
        right = [Path(i["image"]).parent.name == i["classes"][0]["class_name"] for i in images]
        assert len(right) == 16
        assert sum(right) / 16 == expected


def test_probabilities_are_the_softmax_of_the_logits(cnsn, checkpoint, image_folder):
    image = image_folder / "test" / "dark" / "03.png"
    model = load(checkpoint).base
    with torch.inference_mode():
        logits = model(model.preprocess(Image.open(image))[None])[0].tolist()
    expected = torch.tensor(logits).exp() / torch.tensor(logits).exp().sum()
    (row,) = json.loads(cnsn("predict", checkpoint, image, "--json").out)["images"]
    found = {c["class_name"]: c["probability"] for c in row["classes"]}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert [found["bright"], found["dark"]] == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_table_of_files_and_folders_in_order(cnsn, checkpoint, image_folder, tmp_path):
    for name in ("deep", ".cache", "folder.png"):
        (tmp_path / name).mkdir()
    picture = Image.open(image_folder / "test" / "dark" / "00.png")
    for name in ("b.PNG", "deep/a.jpeg", ".hidden.png", ".cache/c.png"):
        picture.resize((70, 40)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    named = tmp_path / "b.PNG"
    out = cnsn("predict", checkpoint, named, tmp_path, "--top", 1).out
    shown = [line.split()[0] for line in out.splitlines()[3:]]
    assert shown == [str(named), str(named), str(tmp_path / "deep" / "a.jpeg")]
    assert cnsn("predict", checkpoint, named).out.count("%") == 2  # the data set has two classes


def test_bad_input_for_predict(cnsn, checkpoint, tmp_path):
    poem = tmp_path / "poem.png"
    poem.write_text("I am a poem")
    assert one_line(cnsn("predict", checkpoint, poem)).startswith(f"cannot read image {poem}: ")
    assert one_line(cnsn("predict", checkpoint, "gone.png")) == "no image or folder gone.png"
    (tmp_path / "empty").mkdir()
    assert "expected files that end in .apng" in one_line(cnsn("predict", checkpoint, tmp_path / "empty"))
    assert "choose base, " in one_line(cnsn("predict", checkpoint, poem.parent, "--submodel", "7"))
    assert cnsn("predict", checkpoint).code == 2


def test_csv_has_what_json_has(cnsn, checkpoint, image_folder, tmp_path):
    picture = tmp_path / 'a "quoted", name.png'
    shutil.copyfile(image_folder / "test" / "dark" / "00.png", picture)
    content = json.loads(cnsn("predict", checkpoint, tmp_path, "--json").out)
    rows = list(csv.DictReader(io.StringIO(cnsn("predict", checkpoint, tmp_path, "--csv").out)))
    guesses = content["images"][0]["classes"]
    expected = [(str(picture), guess["class_name"], guess["probability"]) for guess in guesses]
    assert [(row["image"], row["class"], float(row["probability"])) for row in rows] == expected
    assert "give --csv or --json" in cnsn("predict", checkpoint, tmp_path, "--csv", "--json").err


def test_bad_pictures_are_left_out(cnsn, checkpoint, image_folder, tmp_path):
    shutil.copyfile(image_folder / "test" / "dark" / "00.png", tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    assert "cannot read image" in one_line(cnsn("predict", checkpoint, tmp_path))
    done = cnsn("predict", checkpoint, tmp_path, "--skip-bad", "--json")
    assert done.code == 0
    content = json.loads(done.out)
    assert [image["image"] for image in content["images"]] == [str(tmp_path / "good.png")]
    assert str(bad) in content["skipped"][0]
    assert done.err.startswith("images skipped: 1\n")
    assert "none of 1 images can be read" in one_line(cnsn("predict", checkpoint, bad, "--skip-bad"))


def test_python_users_name_one_picture_or_several(checkpoint, image_folder):
    """Every form gives the probabilities of the model itself."""
    folder = image_folder / "test" / "dark"
    model = load(checkpoint).model("submodel1")
    with torch.inference_mode():
        expected = [
            model(model.preprocess(Image.open(folder / f"{n:02}.png"))[None])[0].softmax(0).max().item()
            for n in range(8)
        ]
    one, several, below = (
        cnsn_cli.predict(str(checkpoint), images, submodel="1", top=1)
        for images in (str(folder / "00.png"), [folder / "00.png", str(folder / "01.png")], folder)
    )
    assert one.model == "submodel1"
    for found, count in ((one, 1), (several, 2), (below, 8)):
        assert [p.image for p in found.images] == [folder / f"{n:02}.png" for n in range(count)]
        assert all(len(p.guesses) == 1 for p in found.images)
        assert [p.guesses[0].probability for p in found.images] == pytest.approx(expected[:count], rel=1e-5)


def test_what_python_users_cannot_ask_for(checkpoint):
    with pytest.raises(ArgumentError, match=r"^top is 0: give a number of at least 1$"):
        cnsn_cli.predict(checkpoint, "x.png", top=0)
    with pytest.raises(ArgumentError, match=r"^images is empty or has"):
        cnsn_cli.predict(checkpoint, ())
    with pytest.raises(cnsn_cli.CnsnError, match=r"^no image or folder cat\.jpg$"):
        cnsn_cli.predict(checkpoint, "cat.jpg")
