"""SIGTERM: its default action before training, a flag during training, and no temporary file left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cnsn_cli.training.signals import listening
from tests.conftest import TINY

DELAYS = (0.05, 0.3, 0.7, 1.1)  # seconds after the start


@pytest.mark.parametrize("delay", DELAYS)
def test_sigterm_ends_a_run_that_starts(tmp_path, delay):
    words = ("--arch", TINY, "--exits", "1", "--data", "digits", "--recipe", "quick", "--epochs", "500")
    command = [sys.executable, "-m", "cnsn_cli", "train", *words, "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay)
        process.terminate()
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    saved = "; to go on: cnsn train --resume" in err  # on a fast machine, training has begun
    assert process.returncode == (143 if saved else -signal.SIGTERM)


def test_commands_leave_sigterm_alone(cnsn, checkpoint, tmp_path):
    assert cnsn("detach", checkpoint, "--submodel", 0, "-o", tmp_path / "small.safetensors").code == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


WRITE = """
import os, signal, sys
from pathlib import Path
from cnsn_cli.files.writer import replacing
{more}
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    assert len(os.listdir(os.path.dirname(sys.argv[1]))) == 1
    for _ in range({signals}):
        os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
LISTEN = "from cnsn_cli.training.signals import listening; context = listening(); context.__enter__()"


@pytest.mark.parametrize(("more", "signals"), [("", 1), (LISTEN, 2)])
def test_sigterm_removes_the_temporary_file(tmp_path, more, signals):
    """Also the second signal in a run, of which the first one is only remembered."""
    program = WRITE.format(more=more, signals=signals)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")
    assert list(tmp_path.iterdir()) == []


def test_one_sigterm_lets_a_run_finish_its_file(tmp_path):
    program = WRITE.format(more=LISTEN, signals=1)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "still here\n")
    assert (tmp_path / "x").read_bytes() == b"half"


def test_a_signal_that_nobody_asked_for_is_sent_again():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with listening() as signalled:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signalled() == signal.SIGTERM
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
