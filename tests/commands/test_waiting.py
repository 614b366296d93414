"""What people see on a terminal while they wait."""

import re

from tests.conftest import TINY


def test_on_a_terminal_the_stage_is_there_before_it_is_done(shown, checkpoint, image_folder, tmp_path):
    """The same lines stay as off a terminal; before each, a live line names the stage with its seconds."""
    words = ("--arch", TINY, "--exits", 1, "--data", image_folder, "--recipe", "quick", "--batch-size", 8)
    for command in (("eval", checkpoint), ("train", *words, "--epochs", 1, "--out", tmp_path / "run")):
        err = shown(60, "utf-8", *command).err
        assert re.search(r"reading \d+ images  0 s.*reading \d+ images: [\d.]+ s", err, re.S)
    assert "epoch 1/1" in err.split("training on")[1]
    assert "epoch" not in err.split("training on")[0]
