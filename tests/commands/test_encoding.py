"""Streams that cannot show every character: a command writes escapes, and never ends in a traceback."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import TINY


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_classes_are_escaped(shown, odd, encoding):
    naive, japanese = ("na\\xefve", "\\u65e5\\u672c\\u8a9e") if encoding == "ascii" else ("naïve", "\\u65e5")
    for words in (("info", odd.model), ("eval", odd.model, "--per-class"), ("card", odd.model)):
        result = shown(None, encoding, *words)
        assert result.code == 0
        assert naive in result.out
        assert japanese in result.out


def test_json_is_the_same_in_every_encoding(shown, odd):
    texts = [shown(None, encoding, "info", odd.model, "--json").out for encoding in ("ascii", "utf-8")]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["task"]["class_names"][0] == "naïve"


def test_a_table_has_the_same_columns_in_every_encoding(shown):
    words = ("mac", "--arch", TINY)
    assert shown(80, "ascii", *words).out == shown(80, "utf-8", *words).out.replace("─", "-")


def test_escapes_do_not_move_the_columns_of_a_table(shown, odd):
    out = shown(100, "ascii", "eval", odd.model, "--per-class").out
    (heading,) = {line for line in out.splitlines() if line.startswith(" class ")}
    rows = [line for line in out.splitlines() if line.startswith((" na\\xefve ", " \\u65e5"))]
    assert len(rows) == 6
    assert {len(line.rstrip()) for line in rows} == {len(heading.rstrip())}


def test_names_in_any_bytes(shown, odd):
    for encoding in ("ascii", "latin-1", "utf-8"):
        assert "caf\\xe9.png" in shown(None, encoding, "predict", odd.model, odd.picture).out
        assert "caf\\xe9" in shown(None, encoding, "info", os.fsdecode(b"caf\xe9")).err
        assert (
            "caf\\udce9" in shown(80, encoding, "mac", "--exits", os.fsdecode(b"caf\xe9"), "--arch", TINY).err
        )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_bars_and_errors(shown, odd, tmp_path, encoding):
    run = ("train", "--data", odd.data, "--arch", TINY, "--exits", 1, "--recipe", "quick", "--epochs", 1)
    for words, code in (
        (("train", "--help"), 0),
        (("--help",), 0),
        (("train", "--flags"), 2),
        ((*run, "--batch-size", 2, "--out", tmp_path / "größe"), 0),
        ((*run, "--batch-size", 2, "--out", tmp_path / "größe"), 1),
    ):
        assert shown(80, encoding, *words).code == code


def test_a_process_whose_locale_is_ascii():
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    command = [sys.executable, "-m", "cnsn_cli", "info", "naïve"]
    result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert result.stderr == "cnsn: cannot read na\\xc3\\xafve: No such file or directory\n"
