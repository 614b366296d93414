"""A command that fails leaves nothing behind, and one that succeeds leaves what it was asked for."""

import errno
import os
import subprocess
import sys

import pytest

from tests.commands.test_cli import one_line
from tests.conftest import TINY

FAILING = {
    "all": ("detach", "--all"),
    "all folded": ("detach", "--all", "--fold-bn"),
    "card": ("card",),
}


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("case", FAILING)
def test_a_folder_that_could_not_be_filled(cnsn, checkpoint, tmp_path, monkeypatch, case, at):
    """The disk is full when file number `at` is written; a file that was there before stays."""
    command, *options = FAILING[case]
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2 * at - 1:  # each file is synced, and then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    outer = tmp_path / "new"
    output = outer / "models" if case.startswith("all") else outer
    assert "No space left on device" in one_line(cnsn(command, checkpoint, *options, "-o", output))
    assert not outer.exists()
    output.mkdir(parents=True)
    (output / "mine").touch()
    calls.clear()
    assert "No space left on device" in one_line(cnsn(command, checkpoint, *options, "-o", output))
    assert [path.name for path in output.iterdir()] == ["mine"]


@pytest.mark.parametrize("options", [(), ("--exits", "1", "--classes", "7")])
def test_a_run_that_does_not_start(cnsn, image_folder, tmp_path, monkeypatch, options):
    monkeypatch.setattr("cnsn_cli.training.run_folder.shutil.disk_usage", lambda folder: Free())
    words = ("train", "--arch", TINY, "--exits", "1", "--data", image_folder, "--recipe", "quick")
    assert cnsn(*words, "--batch-size", 8, "--out", tmp_path / "runs" / "a", *options).code == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs" / "a").mkdir(parents=True)  # this one is not new
    assert cnsn(*words, "--batch-size", 8, "--out", tmp_path / "runs" / "a", *options).code == 1
    assert (tmp_path / "runs" / "a").is_dir()


class Free:
    free = 0


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_exports_leave_no_temporary_files(checkpoint, tmp_path, to):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    words = [sys.executable, "-m", "cnsn_cli", "export", checkpoint, "--to", to, "-o", tmp_path / f"a.{to}"]
    done = subprocess.run(
        words, env={**environment, "TMPDIR": str(temporary)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(temporary.iterdir())
