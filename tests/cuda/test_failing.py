"""A function that turns out in its capture to be none for a graph: it is called as before.

In a process of its own, because after such a failure torch may refuse other captures.
"""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cuda
PROGRAM = """
import torch
from cnsn_cli.training.capture import Captured

def add():
    values.add_(torch.rand_like(values))
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()  # a graph cannot

values = torch.zeros(4, device="cuda")
torch.manual_seed(0)
captured = Captured(add)
for _ in range(6):
    captured()
assert captured.graph is None
assert torch.cuda.current_stream() == torch.cuda.default_stream()
torch.manual_seed(0)
assert torch.equal(values, sum(torch.rand(4, device="cuda") for _ in range(6)))
print(captured.why_not)
"""


def test_a_capture_that_fails_leaves_no_trace():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "captur" in done.stdout
    assert "previous error" not in done.stdout
    assert "UserWarning" not in done.stderr
