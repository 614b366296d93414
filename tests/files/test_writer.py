"""A written file appears complete or not at all; only one run at a time uses a folder."""

import os
import signal
import stat
import subprocess
import sys
from typing import NamedTuple

import pytest

from cnsn_cli.errors import OutputError
from cnsn_cli.files.writer import replacing, write_text
from cnsn_cli.training import run_folder
from cnsn_cli.training.run_folder import check_space, locked
from tests.conftest import TINY


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "x", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def write_half():
        with replacing(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_takes_its_place_and_then_the_folder(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size
        calls.append(kind)
        fsync(descriptor)

    def note_replace(source, target):
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_text(tmp_path / "x", "12345")
    assert calls == [5, "replace", "folder"]


def test_a_second_run_in_a_folder_is_refused(cnsn, tmp_path):
    words = (
        "train",
        "--arch",
        TINY,
        "--exits",
        "1",
        "--data",
        "digits",
        "--recipe",
        "quick",
        "--out",
        tmp_path,
    )
    with locked(tmp_path):
        result = cnsn(*words)
    assert result.code == 1
    assert result.err == (
        f"cnsn: another run is using {tmp_path}: wait until it ends, or give --out another folder\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with locked(tmp_path):  # the lock is free again
        pass


def test_nobody_resumes_a_run_that_is_at_work(cnsn, checkpoint):
    with locked(checkpoint.parent):
        result = cnsn("train", "--resume", checkpoint.parent)
    assert result.code == 1
    assert "another run is using" in result.err


HOLD = """
import sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from cnsn_cli.training.run_folder import locked

class Slow:
    def __len__(self):
        return 9
    def __getitem__(self, index):
        time.sleep(60 * (index > 0))
        return index

with locked(Path(sys.argv[1])):
    for _ in DataLoader(Slow(), batch_size=None, num_workers=2):
        print("at work", flush=True)
"""


def test_a_killed_run_leaves_no_lock_behind(tmp_path):
    """The lock is free at once, although the workers live some seconds longer than the run."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "at work\n"
        with pytest.raises(OutputError, match="another run is using"), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path):
            pass


def test_leftovers_of_killed_writes_go_and_nothing_else(tmp_path):
    strangers = {".small.safetensors.0a1b2c3d.tmp", "best.safetensors", "notes.tmp"}
    leftovers = {".best.safetensors.0a1b2c3d.tmp", ".metrics.jsonl.ffffffff.tmp"}
    for name in strangers | leftovers:
        (tmp_path / name).touch()
    with locked(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == strangers | {".lock"}


def test_leftovers_of_a_long_name_go_too(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    long = tmp_path / "elsewhere" / ("n" * 80 + ".safetensors")
    (tmp_path / "best.safetensors").symlink_to(long)
    with replacing(tmp_path / "best.safetensors"):
        (temporary,) = long.parent.iterdir()
    temporary.touch()  # as if the process had been killed
    long.unlink()
    with locked(tmp_path):
        pass
    assert list(long.parent.iterdir()) == []


class Usage(NamedTuple):
    free: int


def test_free_space_is_checked_before_the_first_epoch(cnsn, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda folder: Usage(3 * 2**20))
    words = ("train", "--arch", "vgg11:width=0.25", "--exits", "", "--data", "digits", "--recipe", "quick")
    result = cnsn(*words, "--out", tmp_path / "run")
    assert result.code == 1
    # 579,786 weights and 1,376 statistics of 4 bytes each, 8 counters of 8 bytes each. The sum counts eight
    # times: best, last, twice for the state, and all that for the second copy. Then 1 MiB is added.
    assert f"the files of the run take 18.7 MiB, and {tmp_path}/run has 3.0 MiB free: make room" in result.err
    assert "epoch" not in result.err


def test_what_is_replaced_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda folder: Usage(2**20 + 100))
    with pytest.raises(OutputError):
        check_space(tmp_path, {"a": 60, "b": 30})
    (tmp_path / "a").write_bytes(bytes(79))
    with pytest.raises(OutputError):
        check_space(tmp_path, {"a": 60, "b": 30})
    (tmp_path / "a").write_bytes(bytes(80))  # old 80 + 100 free: room for 90 twice
    check_space(tmp_path, {"a": 60, "b": 30})


def test_larger_old_files_make_no_more_room_than_the_new_ones_need(tmp_path, monkeypatch):
    """The new files are complete before the old ones go."""
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda folder: Usage(2**20 + 89))
    (tmp_path / "a").write_bytes(bytes(1000))
    with pytest.raises(OutputError):
        check_space(tmp_path, {"a": 60, "b": 30})
