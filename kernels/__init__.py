"""Attention kernels: what a call shall compute (plan), and the one function that computes it (attend).

Imports torch only; triton is imported when its kernels first run. Works without ComfyUI.
"""

from .attend import Trace, attend
from .backends import BackendUnavailable
from .merge import merge
from .plan import (
    MASKED,
    AttentionPlan,
    DistanceTable,
    ExtraKV,
    FrameTable,
    HeadMix,
    Labels,
    Modulation,
    Probe,
    Rotation,
    RowEdit,
)
from .reference import reference_attend

__all__ = [
    "MASKED",
    "AttentionPlan",
    "BackendUnavailable",
    "DistanceTable",
    "ExtraKV",
    "FrameTable",
    "HeadMix",
    "Labels",
    "Modulation",
    "Probe",
    "Rotation",
    "RowEdit",
    "Trace",
    "attend",
    "merge",
    "reference_attend",
]
