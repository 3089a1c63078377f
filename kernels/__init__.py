"""Attention kernels: what a call shall compute (plan), and the one function that computes it (attend).

Imports torch only; triton is imported when its kernels first run. Works without ComfyUI.
"""

from .attend import Trace, attend
from .backends import BackendUnavailable
from .blocks import Band, Bits, BlockList, BlockPlan, Frames, TokenOrder, Window
from .builders import block_list, from_bool
from .mass import block_mass
from .merge import merge
from .order import best_tile, by_frame, by_tile, raster
from .plan import (
    MASKED,
    Aside,
    AttentionPlan,
    DistanceTable,
    ExtraKV,
    FrameTable,
    HeadMix,
    Labels,
    Modulation,
    Probe,
    Rotation,
    RowAffine,
    RowEdit,
)
from .probs import probs
from .reference import reference_attend

__all__ = [
    "MASKED",
    "Aside",
    "AttentionPlan",
    "BackendUnavailable",
    "Band",
    "Bits",
    "BlockList",
    "BlockPlan",
    "DistanceTable",
    "ExtraKV",
    "FrameTable",
    "Frames",
    "HeadMix",
    "Labels",
    "Modulation",
    "Probe",
    "Rotation",
    "RowAffine",
    "RowEdit",
    "TokenOrder",
    "Trace",
    "Window",
    "attend",
    "best_tile",
    "block_list",
    "block_mass",
    "by_frame",
    "by_tile",
    "from_bool",
    "merge",
    "probs",
    "raster",
    "reference_attend",
]
