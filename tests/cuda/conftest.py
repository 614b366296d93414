"""What the tests of CUDA share. tests/conftest.py skips them where there is no CUDA."""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def cublas_can_repeat() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # it is read once, before the first product


@pytest.fixture
def repeatable(cublas_can_repeat: None) -> Iterator[None]:
    """The same bits in every run, within this test. A run with `deterministic` leaves torch so."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
