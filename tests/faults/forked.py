"""Commands in forked children: torch is imported only once, and each command has a process of its own."""

import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

CODE_EVENTS = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
)
CPU_LIMIT, WALL_LIMIT = 30, 300  # seconds; other programs may keep the machine busy


class Ended(NamedTuple):
    """How a command ended.

    `code` is negative for a signal, `memory` is the number of bytes in addition to the imports, `seconds` is
    processor time.
    """

    code: int
    out: str
    err: str
    memory: int
    seconds: float


def run(words: list[object], ignored: tuple[str, ...] = ()) -> Ended:
    """Run `cnsn words`. Events that execute code, except `ignored`, are written to stderr as EXECUTED."""
    from cnsn_cli.main import main

    def command() -> None:
        sys.argv = ["cnsn", *map(str, words)]
        sys.addaudithook(lambda event, arguments: _tell(event, arguments, ignored))
        main()

    return forked(command)


def forked(function: Callable[[], None]) -> Ended:
    """Call `function` in a child process, which is killed if it takes longer than the limits."""
    with tempfile.TemporaryDirectory() as folder:
        out, err, memory = (Path(folder) / name for name in ("out", "err", "memory"))
        child = os.fork()
        if child == 0:
            _in_child(function, out, err, memory)
        _, status, usage = os.wait4(child, 0)
        used = int(memory.read_text()) if memory.exists() else 0
        code, seconds = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        return Ended(code, out.read_text(), err.read_text(), used, seconds)


def _in_child(function: Callable[[], None], out: Path, err: Path, memory: Path) -> None:
    code, before = 70, _memory("VmRSS")
    try:
        renew_threads()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WALL_LIMIT)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
        sys.stdout, sys.stderr = out.open("w"), err.open("w")
        try:
            function()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        memory.write_text(str(_memory("VmHWM") - before))
    finally:
        os._exit(code)


def renew_threads() -> None:
    """Make torch's threads now: after a fork their first use makes them, and two first uses at once fail."""
    torch.set_num_threads(torch.get_num_threads())


def _tell(event: str, arguments: tuple[object, ...], ignored: tuple[str, ...]) -> None:
    if event in CODE_EVENTS and event not in ignored:
        print("EXECUTED", event, arguments, file=sys.stderr)


def _memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
