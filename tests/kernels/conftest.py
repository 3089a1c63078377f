"""Kernels run in Triton's interpreter unless LOOM_GPU=1; the switch must be set before triton is first imported."""

import os
import sys
from pathlib import Path

if os.environ.get("LOOM_GPU") != "1":
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _every_backend_untried():
    """No test sees the launch failures another one has provoked."""
    from attention_loom.kernels.attend import forget_failures

    forget_failures()
    yield
    forget_failures()
