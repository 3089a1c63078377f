"""Lets test files import the helpers beside them (``host_inprocess``, ``tiny_models``); nothing here is called ``nodes``."""

import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.append(HERE)


@pytest.fixture(scope="module")
def host():
    """ComfyUI in this process, in inference mode as it samples. ``pytest.mark.usefixtures("host")`` gives it to a whole file."""
    import host_inprocess
    import torch

    host_inprocess.import_host()
    with torch.inference_mode():
        yield
