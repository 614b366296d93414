"""Tables on terminals of many widths, with long names: figures and classes are whole, names fold."""

import os
import re
from collections import Counter

import pytest

from cnsn_cli.evaluation import latency

FIGURE = re.compile(r"[\d.,]+( ?(%|M|MiB|ms))?|\d+( x \d+)+|unknown")
WIDTHS = (40, 60, 80, 160)


def cells(pipe):
    """The cells of the tables in what a command prints into a pipe, with their numbers."""
    rows = [re.split(r" {2,}", line.strip()) for line in pipe.splitlines() if "─" not in line]
    return Counter(cell for row in rows if len(row) > 1 for cell in row)


def figures(pipe):
    """The cells that are figures."""
    return {cell: count for cell, count in cells(pipe).items() if FIGURE.fullmatch(cell)}


@pytest.fixture
def out(shown, monkeypatch):
    """Runs a command whose stdout is a terminal of some width, or a pipe (None); returns what it prints."""
    monkeypatch.setattr(
        latency, "interleave", lambda variants, rounds: dict.fromkeys(variants, [0.0123] * 50)
    )

    def run(width, *words):
        result = shown(width, "utf-8", *words)
        assert result.code == 0, result.err
        return result.out

    return run


def is_found(text, lines):
    """Whether `text` begins in one of the lines and goes on in the following lines."""
    return any(begins(text, lines[number:]) for number in range(len(lines)))


def begins(text, lines):
    if not text or not lines:
        return not text
    piece = next((text[:n] for n in range(len(text), 0, -1) if text[:n].strip() in lines[0]), "")
    return bool(piece) and begins(text[len(piece) :].lstrip(), lines[1:])


def commands(odd, folder):
    model = odd.model
    half = folder / "half.safetensors"
    return {
        "predict": ("predict", odd.model, odd.data / "test", "--top", 2),
        "bench": ("bench", model, model),
        "eval": ("eval", model, "--per-class"),
        "mac": ("mac", model, "--layers"),
        "archs": ("archs",),
        "why": ("archs", "torchvision:squeezenet1_1", "--why", "--image-size", 64),
        "info": ("info", model),
        "detach": ("detach", model, "--submodel", 1, "--dtype", "float16", "--force", "-o", half),
    }


@pytest.mark.parametrize("command", ["predict", "bench", "eval", "mac", "archs", "why", "info", "detach"])
def test_no_figure_is_cut_and_names_fold(out, odd, tmp_path, command):
    words = commands(odd, tmp_path)[command]
    expected = cells(out(None, *words))
    for width in WIDTHS:
        narrow = out(width, *words)
        assert "…" not in narrow
        for cell, count in expected.items():
            if cell == "accuracy" and command == "bench":  # the network is not trained, so no row has it
                continue
            if FIGURE.fullmatch(cell):
                assert len(re.findall(rf"(?<!\S){re.escape(cell)}(?!\S)", narrow)) >= count, (width, cell)
            else:
                assert is_found(cell, narrow.splitlines()), (width, cell)
        for ruled in re.findall(r"(.*)\n─.*\n((?: ?\S.*\n)*)", narrow):
            assert all(len(line) <= width for line in "\n".join(ruled).splitlines()), width


def test_a_pipe_is_as_wide_as_the_table_needs(out, monkeypatch, odd):
    expected = out(None, "predict", odd.model, odd.data / "test")
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((40, 20)))
    assert out(None, "predict", odd.model, odd.data / "test") == expected


def test_a_narrow_terminal_gets_a_block_for_each_row(out):
    narrow = out(30, "mac", "--arch", "vgg16", "--exits", "2,7")
    assert narrow.split("\n\n")[1].splitlines() == [
        "model       submodel0",
        "drops       2",
        "MACs        273.9 M",
        "operations  274.6 M",
        "parameters  14,690,250",
        "size        56.07 MiB",
    ]
