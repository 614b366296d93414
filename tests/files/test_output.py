"""Where output goes: through links, never in the place of what is no file."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnsn_cli.errors import OutputError
from cnsn_cli.files.metadata import read_metadata
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.files.writer import replacing, write_text
from cnsn_cli.training.run_folder import locked
from tests.commands.test_cli import one_line
from tests.conftest import TINY


def model_in(path: Path) -> str:
    return read_metadata(path, read_header(path)).models[0].name


def linked(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


def test_a_link_stays_a_link_and_its_target_is_written(cnsn, checkpoint, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    real = elsewhere / "real.safetensors"
    link = linked(tmp_path / "link.safetensors", linked(tmp_path / "middle", real))
    words = ("detach", checkpoint, "-o", link, "--submodel")
    assert cnsn(*words, 0).code == 0  # the target of a dangling link is created
    assert model_in(real) == "submodel0"
    assert one_line(cnsn(*words, 1)) == f"{link} exists: give --force to replace it, or another name"
    assert model_in(real) == "submodel0"
    assert cnsn(*words, 1, "--force").code == 0
    assert model_in(real) == "submodel1"
    assert link.is_symlink()
    assert not real.is_symlink()
    assert list(elsewhere.iterdir()) == [real]


def test_a_link_without_a_place_to_go_is_refused(cnsn, checkpoint, tmp_path):
    def refused(link: Path) -> str:
        return one_line(cnsn("detach", checkpoint, "--submodel", 0, "-o", link, "--force"))

    astray = linked(tmp_path / "astray", tmp_path / "no" / "a.safetensors")
    assert refused(astray) == f"no folder {tmp_path / 'no'}: create it first"
    circle = linked(tmp_path / "circle", tmp_path / "circle")
    assert refused(circle).startswith(f"cannot write {circle}: Too many levels of symbolic links")
    itself = linked(tmp_path / "itself", checkpoint)
    assert refused(itself) == f"{itself} is the checkpoint itself: give another name"
    assert {path.name for path in tmp_path.iterdir() if path.is_symlink()} == {"astray", "circle", "itself"}


@pytest.mark.parametrize("command", ["detach", "export", "plot"])
def test_what_is_no_file_is_never_replaced(cnsn, checkpoint, tmp_path, command):
    words = {
        "detach": ("detach", checkpoint, "--submodel", 0),
        "export": ("export", checkpoint, "--to", "onnx"),
        "plot": ("plot", checkpoint.parent),
    }[command]
    suffix = {"detach": ".safetensors", "export": ".onnx", "plot": ".png"}[command]
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    for name in (
        pipe,
        linked(tmp_path / f"link{suffix}", pipe),
        linked(tmp_path / f"null{suffix}", "/dev/null"),
    ):
        message = one_line(cnsn(*words, "-o", name, "--force"))
        assert message == f"{name} is no ordinary file: give another name"
    assert {path.name for path in tmp_path.iterdir()} == {name + suffix for name in ("pipe", "link", "null")}
    assert pipe.is_fifo()


def test_dev_stdout_stays_a_link(checkpoint, tmp_path):
    """The link in /dev is that of the whole system, and a test must not break it: a copy of it stands in."""
    stdout, file = linked(tmp_path / "stdout", Path("/proc/self/fd/1")), tmp_path / "file"
    words = [
        sys.executable,
        "-m",
        "cnsn_cli",
        "detach",
        checkpoint,
        "--submodel",
        "0",
        "-o",
        stdout,
        "--force",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"cnsn: {stdout} is no ordinary file: give another name\n"
    with file.open("wb") as output:
        assert subprocess.run(words, stdout=output).returncode == 0
    assert model_in(file) == "submodel0"
    assert os.readlink(stdout) == "/proc/self/fd/1"


def test_folders_behind_links_are_created_and_filled(cnsn, checkpoint, tmp_path):
    words = {"all": ("detach", checkpoint, "--all"), "card": ("card", checkpoint)}
    for name, command in words.items():
        link = linked(tmp_path / f"{name}-link", tmp_path / name)
        assert cnsn(*command, "-o", link).code == 0
        assert link.is_symlink()
        assert len(list((tmp_path / name).iterdir())) == 3
    readme = linked(tmp_path / "card" / "config.json.link", tmp_path / "mine.json")
    os.replace(readme, tmp_path / "card" / "config.json")
    assert cnsn(*words["card"], "-o", tmp_path / "card", "--force").code == 0
    assert (tmp_path / "card" / "config.json").is_symlink()
    assert (tmp_path / "mine.json").stat().st_size


def test_a_run_behind_links(cnsn, image_folder, tmp_path):
    """The run folder is a dangling link, and one of its files is a link to another disk, say."""
    folder, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    link = linked(tmp_path / "link", folder)
    words = ("train", "--arch", TINY, "--exits", "1", "--data", image_folder, "--recipe", "quick")
    words = (*words, "--epochs", 1, "--batch-size", 8, "--out", link)
    assert cnsn(*words).code == 0
    assert link.is_symlink()
    assert (folder / "best.safetensors").is_file()
    (folder / "best.safetensors").rename(disk / "best.safetensors")
    linked(folder / "best.safetensors", disk / "best.safetensors")
    (disk / ".best.safetensors.0a1b2c3d.tmp").touch()  # as a killed run leaves it
    before = (disk / "best.safetensors").stat().st_ino
    assert cnsn(*words, "--force").code == 0
    assert (folder / "best.safetensors").is_symlink()
    assert [path.name for path in disk.iterdir()] == ["best.safetensors"]
    assert (disk / "best.safetensors").stat().st_ino != before
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    message = one_line(cnsn(*words, "--force"))
    assert message == f"{link / 'metrics.jsonl'} is a folder: give the name of a file"
    with locked(link):
        pass


WRITERS = {
    "detach": (("detach", "--submodel", 0), "a.safetensors"),
    "fold": (("detach", "--submodel", 0, "--fold-bn"), "a.safetensors"),
    "half": (("detach", "--submodel", 0, "--dtype", "float16"), "a.safetensors"),
    "all": (("detach", "--all"), "base.safetensors"),
    "pt2": (("export", "--to", "pt2"), "a.pt2"),
    "int8": (("export", "--to", "onnx", "--quantize", "int8", "--calibrate", 8), "a.onnx"),
    "card": (("card",), "config.json"),
    "plot": (("plot",), "a.png"),
}


@pytest.fixture(params=["hard links", "no hard links"])
def links(request, monkeypatch):
    """A file system with and without hard links."""

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("writer", WRITERS)
def test_the_second_writer_loses(cnsn, checkpoint, tmp_path, monkeypatch, writer):
    """Another process writes the file after cnsn has looked for it and before cnsn puts its own there."""
    (command, *options), name = WRITERS[writer]
    sync, taken = os.fsync, tmp_path / name

    def meanwhile(descriptor: int) -> None:
        taken.write_text("first")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    output = tmp_path if writer in ("all", "card") else taken
    message = one_line(cnsn(command, checkpoint, *options, "-o", output))
    assert message == f"{taken} exists: give --force to replace it, or another name"
    assert taken.read_text() == "first"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("links")
def test_of_writers_without_force_the_first_wins(tmp_path):
    path = tmp_path / "x"

    def race() -> None:
        with replacing(path, force=False) as slow:
            slow.write(b"slow")
            with replacing(path, force=False) as fast:
                fast.write(b"fast")

    with pytest.raises(OutputError, match="x exists: give --force"):
        race()
    assert path.read_bytes() == b"fast"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path, force=True) as file:
        file.write(b"last")
    assert path.read_bytes() == b"last"
    assert path.stat().st_nlink == 1


def test_a_name_that_was_taken_is_free_again_after_a_fault(tmp_path, monkeypatch):
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"cannot write .*: Input/output error"):
        write_text(tmp_path / "x", "new", force=False)
    assert not list(tmp_path.iterdir())
