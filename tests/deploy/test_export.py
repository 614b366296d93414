"""Exported files compute the same network, also on machines without cnsn."""

import copy
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cnsn_cli.data.pixels import normalise
from cnsn_cli.deploy import export as exporting
from cnsn_cli.deploy.detach import detach
from cnsn_cli.deploy.export import WithPreprocessing, export
from cnsn_cli.evaluation.accuracy import evaluate_file
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.onnx_model import OnnxModel
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.model import Model
from tests.commands.test_cli import one_line
from tests.conftest import lively, saved

BATCHES = (1, 2, 7)
STRANGER = """
import sys
sys.modules["cnsn_cli"] = None
import numpy as np, onnxruntime, torch

def program(name):
    if name.endswith(".onnx"):
        session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]
    network = torch.export.load(name).module()
    return lambda images: network(torch.from_numpy(images)).detach().numpy()

for name in sys.argv[1:]:
    run, cases = program(name), np.load(name + ".npz")
    for batch in (1, 2, 7):
        found, expected = run(cases[f"images{batch}"]), cases[f"logits{batch}"]
        assert found.shape == expected.shape == (batch, expected.shape[1])
        assert abs(found - expected).max() <= 1e-4, (name, batch, abs(found - expected).max())
    print(name)
"""


def write_cases(path: Path, model: Model, with_preprocess: bool = False) -> None:
    """Write images in several batch sizes, and PyTorch's logits for them, beside `path`."""
    generator, cases = torch.Generator().manual_seed(3), {}
    for batch in BATCHES:
        pixels = torch.randint(256, (batch, *model.task.image_shape), dtype=torch.uint8, generator=generator)
        images = normalise(pixels, model.task)
        with torch.inference_mode():
            cases[f"logits{batch}"] = model(images).numpy()
        cases[f"images{batch}"] = (pixels if with_preprocess else images).numpy()
    np.savez(f"{path}.npz", **cases)


def check_as_a_stranger(files: list[Path], folder: Path) -> None:
    """Compare files with their cases, in a fresh process that cannot import cnsn_cli."""
    words = [sys.executable, "-c", STRANGER, *map(str, files)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(file) for file in files]


def test_a_stranger_gets_the_same_logits(checkpoint, tmp_path):
    detach(checkpoint, "submodel0", tmp_path / "small.safetensors")
    small = load(tmp_path / "small.safetensors")
    files = []
    for to in ("onnx", "pt2"):
        for with_preprocess in (False, True):
            file = tmp_path / f"{with_preprocess}.{to}"
            written = export(tmp_path / "small.safetensors", to, file, with_preprocess=with_preprocess)
            assert written.bytes == file.stat().st_size
            write_cases(file, small, with_preprocess)
            files.append(file)
    check_as_a_stranger(files, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("arch", "exits"),
    [
        ("vgg11:width=0.1", (1, 4, 7)),
        ("resnet20:width=0.25", (1, 9, 17)),
        ("resnet18:width=0.1", (1, 7, 15)),
        ("resnet50:width=0.1", (1, 25, 46)),
    ],
)
def test_every_family_at_its_first_middle_and_last_exit(arch, exits, tmp_path):
    network = lively(arch, exits)
    whole = saved(tmp_path / "whole.safetensors", network, arch)
    files = []
    for model in load(whole).models():
        for to in ("onnx", "pt2"):
            file = tmp_path / f"{model.name}.{to}"
            export(whole, to, file, model.name)
            write_cases(file, model)
            files.append(file)
    check_as_a_stranger(files, tmp_path)


def test_metadata_tell_a_stranger_what_to_do(checkpoint, tmp_path):
    task = load(checkpoint).task
    export(checkpoint, "onnx", tmp_path / "a.onnx", "1")
    export(checkpoint, "pt2", tmp_path / "a.pt2", "1", with_preprocess=True)
    extra = dict.fromkeys(("input", "output", "class_names", "mean", "std", "crop_pct", "cnsn"), "")
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    texts = {prop.key: prop.value for prop in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert texts["input"] == "float32 pixels / 255, minus mean, divided by std, RGB (N, 3, 32, 32)"
    assert extra["input"] == "uint8 pixels RGB (N, 3, 32, 32)"
    for found in (texts, extra):
        assert json.loads(found["class_names"]) == ["bright", "dark"]
        assert tuple(json.loads(found["mean"])) == task.mean
        assert tuple(json.loads(found["std"])) == task.std
        assert found["output"] == "logits float32 (N, 2)"
    metadata = OnnxModel(tmp_path / "a.onnx").metadata
    whole = read_metadata(checkpoint, read_header(checkpoint))
    assert metadata.models == whole.models[2:]
    assert metadata.parent == read_header(checkpoint).sha256


def test_the_opset_is_that_of_the_file(cnsn, checkpoint, tmp_path):
    out = cnsn("export", checkpoint, "--to", "onnx", "-o", tmp_path / "a.onnx").out
    (opset,) = [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import if not entry.domain]
    assert re.search(rf": base, 0\.1\d MiB, opset {opset}\n", out)
    assert "differ from PyTorch's by " in out


def test_files_hold_no_folder_of_this_machine_and_are_reproducible(checkpoint, tmp_path):
    for to in ("onnx", "pt2"):
        export(checkpoint, to, tmp_path / f"a.{to}")
        export(checkpoint, to, tmp_path / f"b.{to}")
        content = (tmp_path / f"a.{to}").read_bytes()
        assert content == (tmp_path / f"b.{to}").read_bytes()
        assert str(Path(exporting.__file__).parent).encode() not in content
        assert str(Path(torch.__file__).parent).encode() not in content


def test_preprocessing_inside_is_that_outside(checkpoint):
    model = load(checkpoint).models()[1]
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(WithPreprocessing(model)(pixels), model(normalise(pixels, model.task)))


@pytest.mark.parametrize("words", [(), ("--with-preprocess",)])
def test_eval_of_an_export_is_eval_of_the_model(cnsn, checkpoint, tmp_path, words):
    exported = tmp_path / "a.onnx"
    assert cnsn("export", checkpoint, "--to", "onnx", "-o", exported, "--submodel", 0, *words).code == 0
    expected, found = evaluate_file(checkpoint), evaluate_file(exported)
    assert found.results[0].accuracy == expected.results[1].accuracy
    assert found.results[0].loss == pytest.approx(expected.results[1].loss, abs=1e-5)
    assert found.costs == expected.costs[1:2]


def test_an_export_that_differs_is_refused_and_leaves_nothing(cnsn, checkpoint, tmp_path, monkeypatch):
    write = exporting.write

    def write_another(model, *rest):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.units[-1][0].bias.add_(0.01)
        write(other, *rest)

    monkeypatch.setattr(exporting, "write", write_another)
    for to in ("onnx", "pt2"):
        message = one_line(cnsn("export", checkpoint, "--to", to, "-o", tmp_path / f"a.{to}"))
        assert message.startswith("the export of base is not the same network: logits differ by ")
    assert not list(tmp_path.iterdir())


def test_a_network_that_torch_cannot_trace_ends_in_one_line(checkpoint, tmp_path, monkeypatch):
    def forward(self, images):
        return images.mean((1, 2, 3)) if images.sum() > 0 else images.sum((1, 2, 3))

    monkeypatch.setattr(Model, "forward", forward)
    with pytest.raises(
        exporting.ExportError, match=r"^torch cannot export base of vgg11:.* to pt2: "
    ) as caught:
        export(checkpoint, "pt2", tmp_path / "a.pt2")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_a_disk_that_takes_no_more_is_named_as_such(cnsn, checkpoint, tmp_path, to):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        result = cnsn("export", checkpoint, "--to", to, "-o", tmp_path / f"a.{to}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert one_line(result) == f"cannot write {tmp_path / f'a.{to}'}: File too large"
    assert not list(tmp_path.iterdir())


def test_bad_input_for_export(cnsn, checkpoint, tmp_path, monkeypatch):
    def refused(*words: object) -> str:
        return one_line(cnsn("export", *words))

    onnx_file, text = tmp_path / "a.onnx", tmp_path / "text.onnx"
    text.write_text("I am a poem")
    assert "is exported already" in refused(text, "--to", "onnx", "-o", onnx_file)
    assert "create it first" in refused(checkpoint, "--to", "onnx", "-o", tmp_path / "no" / "a.onnx")
    assert "end it in .pt2" in refused(checkpoint, "--to", "pt2", "-o", onnx_file)
    assert "choose base, sub" in refused(checkpoint, "--to", "onnx", "-o", onnx_file, "--submodel", "big")
    assert "give --force" in refused(checkpoint, "--to", "onnx", "-o", text)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused(checkpoint, "--to", "onnx", "-o", onnx_file)
    assert message == "ONNX needs onnxscript: pip install 'cnsn-cli[onnx]'"
    assert [path.name for path in tmp_path.iterdir()] == ["text.onnx"]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("logits = ReduceMax<axes = [0]>(two)", "returns logits (1, 2) for 16 images, not (16, 2)"),
        ("logits = Log(two)", "cannot be used: it returns NaN or infinite logits"),
    ],
)
def test_logits_of_strangers_that_are_none(cnsn, checkpoint, image_folder, tmp_path, last, reason):
    graph = onnx.parser.parse_graph(f"""
        liar (float[N, 3, 32, 32] images) => (float[M, 2] logits) <int64[2] pick = {{0, 1}}> {{
            means = ReduceMean<axes = [2, 3], keepdims = 0>(images)
            some = Gather<axis = 1>(means, pick)
            most = Abs(some)
            two = Neg(most)
            {last}
        }}""")
    whole = read_metadata(checkpoint, read_header(checkpoint))
    ours = exporting.exported_metadata(whole, load(checkpoint).base, "").to_json()
    path = written(tmp_path / "liar.onnx", graph, {"cnsn": ours})
    for words in (("eval", path), ("predict", path, image_folder / "test", "--json")):
        assert one_line(cnsn(*words)) == f"{path} {reason}"


def strange_onnx(path: Path, shape: tuple[int | str, ...], metadata: dict[str, str]) -> Path:
    """Write an ONNX file that negates its input."""
    value = (onnx.TensorProto.FLOAT, shape)
    ends = [onnx.helper.make_tensor_value_info(name, *value) for name in ("x", "y")]
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    return written(path, onnx.helper.make_graph([node], "other", ends[:1], ends[1:]), metadata)


def written(path: Path, graph: onnx.GraphProto, metadata: dict[str, str]) -> Path:
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_files_of_strangers(cnsn, checkpoint, tmp_path):
    def refused(path: Path) -> str:
        return one_line(cnsn("eval", path)).removeprefix(f"{path} ")

    text = tmp_path / "text.onnx"
    text.write_text("I am a poem")
    assert refused(text).startswith("is no ONNX file that can be run: ")
    assert "no such file" in one_line(cnsn("eval", tmp_path / "gone.onnx"))
    foreign = strange_onnx(tmp_path / "foreign.onnx", ("N", 3, 32, 32), {})
    assert refused(foreign) == "was not written by cnsn: its metadata have no key 'cnsn'"
    whole = read_metadata(checkpoint, read_header(checkpoint))
    several = strange_onnx(tmp_path / "several.onnx", ("N", 3, 32, 32), {"cnsn": whole.to_json()})
    assert refused(several) == "holds 1 model, not the 3 of a network"
    ours = exporting.exported_metadata(whole, load(checkpoint).base, "").to_json()
    small = strange_onnx(tmp_path / "small.onnx", ("N", 3, 8, 8), {"cnsn": ours})
    assert refused(small) == "does not take the images (3, 32, 32) that its metadata state"
    classes = strange_onnx(tmp_path / "classes.onnx", ("N", 3, 32, 32), {"cnsn": ours})
    assert refused(classes) == "does not return logits of the 2 classes in its metadata"


def test_all_models_are_exported_into_a_folder(cnsn, checkpoint, image_folder, tmp_path):
    """Each file classifies as the model of the network that it is called after."""
    folder = tmp_path / "models"
    done = cnsn("export", checkpoint, "--to", "onnx", "--all", "-o", folder, "--json")
    assert done.code == 0, done.err
    files = [Path(entry["file"]) for entry in json.loads(done.out)["files"]]
    assert files == [folder / f"{name}.onnx" for name in ("base", "submodel0", "submodel1")]
    assert set(folder.iterdir()) == set(files)
    expected = [result.accuracy for result in evaluate_file(checkpoint).results]
    assert [evaluate_file(file).results[0].accuracy for file in files] == expected
    assert "exists: give --force" in one_line(
        cnsn("export", checkpoint, "--to", "onnx", "--all", "-o", folder)
    )


def test_a_failing_export_of_all_leaves_nothing(cnsn, checkpoint, tmp_path, monkeypatch):
    written, write = [], exporting.write_checked

    def fail_at_the_second(*arguments):
        written.append(arguments)
        if len(written) == 2:
            raise exporting.ExportError("no")
        return write(*arguments)

    monkeypatch.setattr(exporting, "write_checked", fail_at_the_second)
    words = ("export", checkpoint, "--to", "pt2", "--all", "-o", tmp_path / "models")
    assert one_line(cnsn(*words)) == "no"
    assert not (tmp_path / "models").exists()
    assert "--all goes without --submodel" in cnsn(*words, "--submodel", 0).err


@pytest.mark.parametrize("command", [("export", "--to", "pt2"), ("detach",)])
def test_all_models_do_not_go_into_a_file(cnsn, checkpoint, tmp_path, command):
    taken = tmp_path / "models"
    taken.write_text("a file")
    result = cnsn(*command, checkpoint, "--all", "--force", "-o", taken)
    assert one_line(result) == f"{taken} is a file: --all writes into a folder"
    assert taken.read_text() == "a file"
