"""Training and evaluation keep the memory that they free: the second round touches no new pages."""

import ctypes
import subprocess
import sys
from statistics import mean

import pytest

PAGES_OF_A_LAYER = 32 * 8 * 64 * 64 * 4 // 4096  # features of the first conv of the network below: 4 MiB

SCRIPT = """
import resource
import torch
from cnsn_cli import Cnsn, Task, load_recipe
from cnsn_cli.backbones import registry
from cnsn_cli.data.split import MemorySplit
from cnsn_cli.evaluation.accuracy import evaluate
from cnsn_cli.training.trainer import Trainer

torch.set_num_threads(1)
task = Task.plain(image_size=64)
network = Cnsn(registry.find("vgg11:width=0.125").build(task), (2,), task)
split = MemorySplit(torch.zeros(512, 3, 64, 64, dtype=torch.uint8), torch.arange(512) % 10)
WORK
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
WORK = {
    "evaluation": "work = lambda: evaluate(network, split.take(torch.arange(200)))",
    "training": """
steps = Trainer(network, split, split, load_recipe("quick", {"batch_size": 32})).run()
work = lambda: next(steps)
""",
}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize("work", WORK)
def test_later_rounds_touch_no_new_pages(work):
    script = SCRIPT.replace("WORK", WORK[work])
    found = subprocess.check_output([sys.executable, "-c", script], text=True)
    first, *later = map(int, found.split())
    assert first > PAGES_OF_A_LAYER  # the measure sees pages
    assert mean(later[3:]) < PAGES_OF_A_LAYER / 2  # the heap may still grow a little
