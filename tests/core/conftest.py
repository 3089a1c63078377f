"""Lets test files import the helpers beside them (``host_inprocess``, ``tiny_models``); nothing here is called ``nodes``."""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.append(HERE)
