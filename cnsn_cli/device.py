"""The device that computes, and the numbers that it can compute with.

Training, networks and evaluation call this module. It does not know networks.
"""

import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnsn_cli.errors import DeviceError

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> "torch.device":
    """The device `cpu`, `cuda` or `mps`; `auto` is the fastest one on this machine.

    Raises DeviceError if this machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name):
        there = ", ".join(device for device, there in available.items() if there)
        raise DeviceError(f"no device {name!r} here: choose auto, {there}")
    return torch.device(name)


def peak_memory(device: "torch.device") -> int:
    """The most bytes that torch has taken from a GPU, or that this process has taken from the memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M) if status.exists() else None
    if found:  # the other figure also counts the process that started this one
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def emulates_bf16(device: "torch.device") -> bool:
    """Whether `device` has no instructions for bf16, and computes it with others."""
    import torch

    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    has_instructions = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return device.type == "cpu" and not has_instructions()


def slowdown_of_bf16(device: "torch.device") -> float:
    """How many times as long as in fp32 a training step of one 3x3 conv takes in bf16, measured now.

    Torch's random numbers stay as they are: a resumed run has just restored them.
    """
    import torch
    import torch.nn.functional as F

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = torch.zeros(64, 64, 3, 3, dtype=dtype, device=device, requires_grad=True)
        images = torch.zeros(16, 64, 32, 32, dtype=dtype, device=device)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            (gradient,) = torch.autograd.grad(F.conv2d(images, weights, padding=1).sum(), weights)
            gradient.sum().item()  # waits for the device
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Inside this context, CUDA computes fp32 as it is, not in TF32, which has 10 bits in place of 23.

    Without CUDA nothing is set: code that reads torch's older switches cannot do so inside this context.
    """
    from torch import backends, cuda

    if not cuda.is_available():
        yield
        return
    parts: list[Any] = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


@contextmanager
def fastest_convs() -> Iterator[None]:
    """Inside this context, cuDNN tries its algorithms for a new shape and takes the fastest.

    Results that must be repeatable take no algorithm that was faster by chance.
    """
    import torch
    from torch.backends import cudnn

    before = cudnn.benchmark
    cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        cudnn.benchmark = before
