"""Odd names, and streams of odd encodings and widths, for tests of what commands show."""

import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from cnsn_cli.backbones import registry
from cnsn_cli.main import main
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from tests.conftest import TINY, Result, saved

CLASSES = ("naïve", "日本語", "a class with a name of several words", "x" * 70)
ESCAPES = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


@dataclass(frozen=True)
class Odd:
    """A data set whose classes have odd names, a network for it, and a file name that is no UTF-8."""

    data: Path
    model: Path
    picture: Path


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    data = tmp_path_factory.mktemp("größe-of-a-name-that-is-longer-than-a-narrow-terminal")
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            (data / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (number * 60,) * 3).save(data / split / name / "an-image.png")
    task = Task(CLASSES, 32, 3, (0.5,) * 3, (0.5,) * 3)
    network = Cnsn(registry.find(TINY).build(task), (1, 4), task)
    picture = data / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (32, 32)).save(picture)
    return Odd(data, saved(data / "é-checkpoint.safetensors", network, TINY, str(data)), picture)


class Stream(io.TextIOWrapper):
    """What a command writes to; if `terminal`, the command takes it for a terminal."""

    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding, write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command whose streams are terminals of some width, or pipes (None), with some encoding.

    The result has no escape sequences of terminals.
    """

    def run(width: int | None, encoding: str, *words: object) -> Result:
        streams = [Stream(encoding, width is not None) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["cnsn", *map(str, words)])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            patch.delenv("FORCE_COLOR", raising=False)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", str(width)) if width else patch.delenv("COLUMNS", raising=False)
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        texts = [stream.buffer.getvalue().decode(encoding) for stream in streams]
        return Result(code, *(ESCAPES.sub("", text) for text in texts))

    return run
