"""What cnsn writes, cnsn can read: what no file can record is refused before the first epoch."""

import os

import pytest

from cnsn_cli.backbones import plugins
from cnsn_cli.commands.new_run import default_folder
from cnsn_cli.files import checkpoint as checkpoints
from cnsn_cli.files import tensor_file
from cnsn_cli.files.metadata import Metadata, metadata_in
from tests.commands.test_cli import one_line
from tests.conftest import TINY

CAFE = os.fsdecode(b"caf\xe9")  # what file systems with Latin-1 names hold
RUN = ("--exits", 1, "--recipe", "quick", "--epochs", 1, "--batch-size", 8)
PLUGIN = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
        self[0].register_buffer({name!r}, self[0].weight[0, 0, 0, 0].detach() * {factor})

    def forward(self, images):
        return super().forward(images)

def net(num_classes):
    return Net(num_classes)
"""


@pytest.fixture
def refused(cnsn, image_folder, tmp_path):
    """Starts a run that is refused before its first epoch; returns the reason."""

    def run(*words: object, arch: str = TINY) -> str:
        data = () if "--data" in words else ("--data", image_folder)
        result = cnsn("train", "--arch", arch, *RUN, *data, "--out", tmp_path / "run", *words)
        assert "epoch 1" not in result.err
        assert {path.name for path in tmp_path.glob("run/*")} <= {".lock"}
        return one_line(result)

    return run


def test_a_class_that_is_no_utf8_is_refused_before_the_first_epoch(refused, image_folder, tmp_path):
    for split in ("train", "test"):
        for number, name in enumerate(("bright", CAFE)):
            (tmp_path / split / name).mkdir(parents=True)
            picture = next((image_folder / split / ("bright", "dark")[number]).iterdir())
            (tmp_path / split / name / "0.png").symlink_to(picture)
    message = refused("--data", tmp_path)
    assert message == rf"the class folder 'caf\xe9' in {tmp_path / 'train'} is no UTF-8: rename it"


@pytest.mark.parametrize("option", ["--data", "--data-dir", "--init", "--freeze-base"])
def test_what_the_state_records_must_be_utf8(refused, image_folder, checkpoint, tmp_path, option):
    path = tmp_path / CAFE
    path.symlink_to(image_folder if option.startswith("--data") else checkpoint)
    reason = rf"'{tmp_path}/caf\xe9' is no UTF-8, and no file can record it: rename it, or name a link to it"
    assert refused(option, path) == f"{option} {reason}"


def test_output_may_have_any_name(cnsn, checkpoint, image_folder, tmp_path):
    """Other paths that are no UTF-8 work: nothing records them."""
    folder = tmp_path / CAFE
    result = cnsn("train", "--arch", TINY, *RUN, "--data", image_folder, "--out", folder)
    assert rf"written: {tmp_path}/caf\xe9/best.safetensors" in result.out
    best, small, exported = (folder / f"{CAFE}{end}" for end in (".1", ".2", ".onnx"))
    (folder / "best.safetensors").rename(best)
    assert cnsn("detach", best, "--submodel", 0, "-o", small).code == 0
    assert cnsn("detach", best, "--all", "-o", folder / "all").code == 0
    assert cnsn("card", small, "-o", folder / "card").code == 0
    assert cnsn("export", small, "--to", "onnx", "-o", exported).code == 0
    for suffix in ("png", "svg"):
        assert cnsn("plot", small, best, "-o", folder / f"{CAFE}.{suffix}").code == 0
    assert rb"caf\xe9" in (folder / f"{CAFE}.svg").read_bytes()
    (folder / f"{CAFE}.bmp").symlink_to(next((image_folder / "test" / "dark").iterdir()))
    for file in (best, small, exported):
        assert cnsn("info", file).code == 0
        result = cnsn("predict", file, folder / f"{CAFE}.bmp", "--json")
        assert result.code == 0, result.err


def test_resuming_with_data_that_no_file_can_record(cnsn, checkpoint, image_folder, tmp_path):
    (tmp_path / CAFE).symlink_to(image_folder)
    words = ("train", "--resume", checkpoint.parent, "--data", tmp_path / CAFE, "--epochs", 2)
    assert r"caf\xe9' is no UTF-8" in one_line(cnsn(*words))


def test_limits_of_the_reader_hold_before_the_first_epoch(refused, monkeypatch, tmp_path):
    """One is that of 4,096 characters for an architecture; the others are lowered, to keep the test quick."""
    long = f"vgg11:width=0.{'0625':0<5000}"
    assert refused(arch=long).endswith("arch: String should have at most 4096 characters")
    for module, limit, value, reason in (
        (tensor_file, "LARGEST_HEADER", 9000, "at most 9000 are read"),
        (tensor_file, "MOST_VALUES", 100, "its JSON has more than 100 values"),
        (checkpoints, "MOST_PARAMETERS", 30, "its architecture has more than 30 parameter tensors"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            message = refused()
        start = (
            f"{tmp_path / 'run' / 'best.safetensors'} is not written, because cnsn could not read it again: "
        )
        assert message.startswith(start)
        assert message.endswith(reason)


@pytest.mark.parametrize(
    ("name", "factor", "reason"),
    [
        ("x" * 600, 1, "the name of a tensor is not 1 to 512 printable characters"),
        ("a\nb", 1, "the name of a tensor is not 1 to 512 printable characters"),
        ("turn", 1j, "tensor 'units.0.0.turn' has an impossible description"),
    ],
)
def test_tensors_that_the_reader_refuses(refused, monkeypatch, tmp_path, name, factor, reason):
    monkeypatch.setattr(plugins, "_named", set())
    file = tmp_path / f"net{abs(hash(name))}.py"
    file.write_text(PLUGIN.format(name=name, factor=factor))
    assert refused("--plugin", file, arch=f"{file.stem}:net").endswith(reason)


def test_metadata_are_read_back_before_the_rename(cnsn, checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "small.safetensors"
    output.write_text("old")
    monkeypatch.setattr(Metadata, "to_json", lambda metadata: '{"format": 1}')
    words = ("detach", checkpoint, "--submodel", 0, "-o", output, "--force")
    for more in ((), ("--fold-bn",)):
        message = one_line(cnsn(*words, *more))
        start = f"{output} is not written, because cnsn could not read it again: it has broken metadata: "
        assert message.startswith(start)
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_the_longest_name_and_a_longer_one(cnsn, checkpoint, tmp_path):
    words = ("detach", checkpoint, "--submodel", 0, "-o")
    longest = tmp_path / ("é" * 121 + "x.safetensors")  # 255 bytes
    assert cnsn(*words, longest).code == 0
    assert metadata_in(longest).models[0].name == "submodel0"
    longer = longest.with_name(f"x{longest.name}")
    assert one_line(cnsn(*words, longer)) == f"cannot write {longer}: File name too long"


def test_the_run_folder_of_a_long_name():
    """255 bytes are the limit of file systems."""
    assert len(os.fsencode(default_folder("vgg16:" + "é" * 300, f"/data/{'é' * 127}").name)) <= 255
