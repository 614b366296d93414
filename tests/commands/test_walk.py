"""A random walk over commands, widths of terminals, encodings and odd names.

Whatever the combination is, a command ends without a traceback, an error is one line, and no figure is cut.
"""

import os
import random
import re

import pytest

from cnsn_cli.evaluation import latency
from tests.commands.test_table import figures
from tests.conftest import STAGE, TINY

SEED, SHORT, LONG = 16, 30, 300
WIDTHS = (None, 20, 40, 60, 80, 100, 160)
ENCODINGS = ("utf-8", "ascii", "latin-1")
NAMES = (
    "naïve", "日本語", "e\u0301", "with a space", "x" * 70, "tab\tnew\nline", "\x1b[31mred", "{name}[bold]",
    os.fsdecode(b"caf\xe9"), "🙂", "'quoted'",
)  # fmt: skip
TRAIN = ("train", "--arch", TINY, "--exits", "1", "--recipe", "quick", "--epochs", "1", "--batch-size", "2")

# Command -> its words, from an odd network, a folder to write to and an odd name. The figures of commands
# under CHANGING differ from run to run.
COMMANDS = {
    "predict": lambda odd, out, name: ("predict", odd.model, out / f"{name}.png", odd.picture, "--top", 3),
    "eval": lambda odd, out, name: ("eval", odd.model, "--per-class"),
    "eval other": lambda odd, out, name: ("eval", odd.model, "--data", odd.data, "--recalibrate", 1),
    "bench": lambda odd, out, name: ("bench", odd.model, out / f"{name}.safetensors", "--rounds", 1),
    "mac": lambda odd, out, name: ("mac", out / f"{name}.safetensors", "--layers"),
    "mac arch": lambda odd, out, name: ("mac", "--arch", "resnet18:width=0.25"),
    "mac unknown": lambda odd, out, name: ("mac", "--arch", name),
    "info": lambda odd, out, name: ("info", out / f"{name}.safetensors"),
    "info json": lambda odd, out, name: ("info", out / f"{name}.safetensors", "--json"),
    "info missing": lambda odd, out, name: ("info", name),
    "archs": lambda odd, out, name: ("archs",),
    "archs why": lambda odd, out, name: ("archs", "torchvision:squeezenet1_1", "--why", "--image-size", 64),
    "archs unknown": lambda odd, out, name: ("archs", name),
    "card": lambda odd, out, name: ("card", odd.model, "--license", name),
    "detach": lambda odd, out, name: (
        "detach", odd.model, "--submodel", 1, "--force", "--dtype", "float16", "-o", out / f"{name}-half"
    ),
    "detach limits": lambda odd, out, name: ("detach", odd.model, "--max-macs", "1", "-o", out / name),
    "export": lambda odd, out, name: (
        "export", odd.model, "--to", "pt2", "--force", "-o", out / f"{name}.pt2"
    ),
    "plot": lambda odd, out, name: ("plot", odd.model, "-o", out / f"{name}.png"),
    "recipes": lambda odd, out, name: ("recipes",),
    "recipes unknown": lambda odd, out, name: ("recipes", name),
    "train": lambda odd, out, name: (*TRAIN, "--data", odd.data, "--out", out / name, "--force"),
    "train nowhere": lambda odd, out, name: (*TRAIN, "--data", f"nowhere {name}", "--out", out / "never"),
    "train recipe": lambda odd, out, name: (*TRAIN[:5], "--recipe", name, "--out", out / "never"),
    "train plugin": lambda odd, out, name: (*TRAIN, "--plugin", f"{name}.py", "--out", out / "never"),
    "resume missing": lambda odd, out, name: ("train", "--resume", out / f"no {name}"),
    "help": lambda odd, out, name: ("train", "--help"),
    "usage": lambda odd, out, name: ("mac", "--arch", TINY, "--exits", name),
    "no option": lambda odd, out, name: ("eval", f"--{name}"),
    "no command": lambda odd, out, name: (name,),
}  # fmt: skip
CHANGING = {"train", "export"}


def walk(odd, shown, folder, steps):
    """Takes steps until `steps` are done; the first step that goes wrong fails the test."""
    draw = random.Random(SEED)
    order = list(COMMANDS)
    for number in range(steps):
        if number % len(order) == 0:
            draw.shuffle(order)  # so that a short walk visits every command
        command, name = order[number % len(order)], draw.choice(NAMES)
        width, encoding = draw.choice(WIDTHS), draw.choice(ENCODINGS)
        for suffix in (".safetensors", ".png"):
            link = folder / f"{name}{suffix}"
            if not link.is_symlink():
                link.symlink_to(odd.model if suffix == ".safetensors" else odd.picture)
        step(shown, COMMANDS[command](odd, folder, name), width, encoding, command in CHANGING)


def step(shown, words, width, encoding, changing):
    where = (width, encoding, words)
    result = shown(width, encoding, *words)
    assert result.code in (0, 1, 2), where
    assert "Traceback" not in result.out + result.err, where
    assert "…" not in result.out, where
    assert "\x1b" not in result.out + result.err, where  # `shown` has taken out those of rich
    if result.code == 1:
        lines = STAGE.sub("", result.err).splitlines()
        assert lines[-1].startswith("cnsn: "), where
    if result.code == 0 and not changing:
        for cell, count in figures(shown(None, "utf-8", *words).out).items():
            assert len(re.findall(rf"(?<!\S){re.escape(cell)}(?!\S)", result.out)) >= count, (where, cell)


@pytest.fixture
def steady(monkeypatch):
    """Every measured time is the same."""
    monkeypatch.setattr(
        latency, "interleave", lambda variants, rounds: dict.fromkeys(variants, [0.0123] * rounds)
    )


@pytest.mark.usefixtures("steady")
def test_a_short_walk(odd, shown, tmp_path):
    walk(odd, shown, tmp_path, SHORT)


@pytest.mark.long
@pytest.mark.usefixtures("steady")
def test_a_long_walk(odd, shown, tmp_path):
    walk(odd, shown, tmp_path, LONG)
