"""The thread that writes: it is idle while a process is forked, and signals do not wait for it."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from cnsn_cli.data import datasets
from cnsn_cli.data.split import from_files
from cnsn_cli.phases import collected, phase
from cnsn_cli.training import recorder as recorders
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.writer_thread import WriterThread
from tests.conftest import TINY
from tests.training.test_resume import Stop, assert_same_run, stop_at_step
from tests.training.test_saving import LONG, STEPS, check_together


class Slow:
    """Stands for a bundle."""

    done = False

    def write(self) -> None:
        time.sleep(0.5)
        self.done = True


def test_the_thread_is_idle_while_a_process_is_forked():
    thread, bundle = WriterThread(), Slow()
    with collected() as phases, phase("reading"), thread.running():
        thread.put(bundle)
        child = os.fork()
        if child == 0:
            os._exit(0 if bundle.done and threading.active_count() == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert phases.totals()["waiting for the disk"] > 0.3  # of 0.5 s


def test_ctrl_c_interrupts_the_wait_before_workers_start():
    thread, pixels = WriterThread(), torch.zeros(3, 2, 2, dtype=torch.uint8)
    split = from_files(lambda number: None, lambda read, number: pixels, [0, 1])
    with thread.running():
        thread.put(Slow())
        threading.Timer(0.1, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            next(split.in_order(2))
    assert next(split.in_order(2)).shape == (2, 3, 2, 2)


def test_runs_whose_images_workers_read(image_folder, tmp_path, quick, monkeypatch):
    """Each epoch forks workers when the state of the epoch before has just been handed over."""
    monkeypatch.setattr(recorders, "EPOCHS_APART", 0)
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 0)
    recipe = quick.model_copy(update={"epochs": 3})
    train(TINY, (1,), str(image_folder), recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), recipe, tmp_path / "cut", watch=stop_at_step(2 * STEPS + 1))
    assert check_together(tmp_path / "cut") == 2
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


WRITE = """
import os, signal, sys, time
from pathlib import Path
from cnsn_cli.files.writer import replacing
from cnsn_cli.training.signals import listening
from cnsn_cli.training.writer_thread import WriterThread

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)

class Bundle:
    def write(self):
        terminate()
        with replacing(Path(sys.argv[1])) as file:
            file.write(b"whole")
            if {twice}:
                terminate()

thread = WriterThread()
with listening(), thread.running():
    thread.put(Bundle())
"""


@pytest.mark.parametrize(("twice", "content"), [(False, [b"whole"]), (True, [])])
def test_sigterm_while_the_thread_writes(tmp_path, twice, content):
    """The first one waits for the file; the second one ends the process, and the temporary file goes."""
    program = WRITE.format(twice=twice)
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == content


STUCK = """
import os, sys, threading, time
from cnsn_cli.files import writer
from cnsn_cli.main import main

sync = os.fsync
def stuck(descriptor):
    if threading.current_thread() is not threading.main_thread():
        print("stuck", file=sys.stderr, flush=True)
        time.sleep(600)
    sync(descriptor)
writer.os.fsync = stuck
main()
"""


def test_a_second_ctrl_c_does_not_wait_for_the_disk(tmp_path):
    words = ("train", "--arch", TINY, "--exits", "1", "--data", "digits", "--recipe", "quick")
    command = [sys.executable, "-c", STUCK, *words, "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in ("epoch 1/", "stuck"):
            while not (read := process.stderr.readline()).startswith(line):
                assert read, "it ended"
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert time.monotonic() - start < LONG
    assert "stopped; to go on: cnsn train --resume" in rest
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert check_together(tmp_path / "run") == 0
