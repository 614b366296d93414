"""A run that is killed at random instants, and goes on each time, ends in the weights of one that was not."""

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from cnsn_cli.recipe import load_recipe
from cnsn_cli.run import resume, train
from tests.faults.forked import renew_threads
from tests.faults.test_mutations import many
from tests.test_resume import assert_same_run

CHANGES = {"epochs": 4, "batch_size": 2, "crop_padding": 1, "flip": "random", "ema": 0.8, "val_split": 0.25}


def killed(function: Callable[[], object], delay: float) -> bool:
    """Whether `function`, in a child, was killed after `delay` seconds and had not come to its end."""
    child = os.fork()
    if child == 0:
        try:
            renew_threads()
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), "the child raised: its traceback is on stderr"
    return code == -signal.SIGKILL


@many(8, 300)
def test_kills_at_random_instants(tiny, tmp_path, figures, count):
    data, recipe = tiny["network"].parents[1] / "data", load_recipe("quick", CHANGES)
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def start(folder: Path) -> None:
        train("tiny", (1,), str(data), recipe, folder, save_every="1", force=True)

    def go_on() -> None:
        resume(cut) if (cut / "state.safetensors").exists() else start(cut)

    start(whole)
    begin = time.perf_counter()
    start(cut)
    seconds = time.perf_counter() - begin
    draw, kills, runs, where = random.Random(5), 0, 0, set()
    while kills < count:
        shutil.rmtree(cut)
        while killed(go_on, draw.uniform(0, seconds)):
            kills += 1
            where.add(
                tuple(sorted(path.name.split(".")[0] for path in cut.glob("*"))) if cut.exists() else ()
            )
        assert_same_run(cut, whole)
        runs += 1
    figures(f"{kills} kills in {runs} runs, leaving {len(where)} sets of files, 0 mismatches")
