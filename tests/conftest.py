"""Settings every test needs before anything is imported."""

import os
import sys
from pathlib import Path

if os.environ.get("LOOM_GPU") != "1":
    # read by triton when it is first imported; kernels then run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
# our folder `nodes` would hide the host's `nodes.py` from everything that imports it
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_collection_modifyitems(items):
    if os.environ.get("LOOM_GPU") == "1":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; run with LOOM_GPU=1 on one"))


def pytest_addoption(parser):
    parser.addoption("--screenshots", default=None, help="folder into which the browser tests put pictures of what they see")
