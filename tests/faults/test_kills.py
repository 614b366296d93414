"""A run that is killed at random times, and resumed each time, ends in the weights of an undisturbed run."""

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from cnsn_cli.training import run as runs
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import resume, train
from tests.faults.forked import renew_threads
from tests.faults.test_mutations import many
from tests.training.test_resume import assert_same_run

CHANGES = {"epochs": 4, "batch_size": 2, "crop_padding": 1, "flip": "random", "ema": 0.8, "val_split": 0.25}
STEPS = 12  # of 4 epochs: 6 of the 8 images, two at a time


def killed(function: Callable[[], object], delay: float | None) -> bool:
    """Call `function` in a child, and kill it after `delay` seconds. Whether it was killed before its end."""
    child = os.fork()
    if child == 0:
        try:
            renew_threads()
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), "the child raised: its traceback is on stderr"
    return code == -signal.SIGKILL


@many(8, 300)
def test_kills_at_random_instants(tiny, tmp_path, monkeypatch, figures, count):
    monkeypatch.setattr(
        runs, "plot", lambda *folders, **more: None
    )  # it takes half the time, and writes one file
    data, recipe = tiny["network"].parents[1] / "data", load_recipe("quick", CHANGES)
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def start(folder: Path) -> None:
        train("tiny", (1,), str(data), recipe, folder, save_every="1", force=True)

    def go_on() -> None:
        resume(cut) if (cut / "state.safetensors").exists() else start(cut)

    start(whole)  # in this process, so that children need not import anything
    begin = time.perf_counter()
    assert not killed(lambda: start(cut), None)
    seconds = time.perf_counter() - begin
    draw, kills, finished, places, writes = random.Random(5), 0, 0, set(), 0
    while kills < count:
        shutil.rmtree(cut, ignore_errors=True)
        while killed(go_on, draw.uniform(0, seconds)):
            kills += 1
            writes += any(cut.glob(".*.tmp"))
            places.add(place(cut))
        assert_same_run(cut, whole)
        finished += 1
    figures(
        f"{kills} kills in {finished} runs, at {len(places)} places of {STEPS + 2}, {writes} of them while a "
        "file was written, 0 mismatches"
    )
    assert len(places) >= min(count // 4, STEPS)  # the kills are spread over the run


def place(folder: Path) -> int | None:
    """The number of steps done, as the state in `folder` says; None if there is no state yet."""
    path = folder / "state.safetensors"
    if not path.exists():
        return None
    state = read_state(path)
    return state.epoch * STEPS // CHANGES["epochs"] + state.step
