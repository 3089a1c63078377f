"""What a forward launch takes, by name; packed into flat lists where it passes the operator, whose schema knows no classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from ..bits import pack
from ..blocks import EMPTY, Band, Bits, BlockPlan, ElementMask, Frames, Window
from ..caching import with_part
from ..lists import WorkLists, in_place_order, launch_order, readable, work_lists
from ..logits import mean_key
from ..plan import AttentionPlan, DistanceTable, ExtraKV, FrameTable, Labels
from .settings import VARIANTS, Settings

SEGMENTS = 2
"""Extra segments the kernel reads in the same pass."""


@dataclass(frozen=True)
class Tensors:
    """Everything but q, k and v; None where a part is absent. Shapes as in :func:`kernels.triton.forward.forward_kernel`.

    takers: for :func:`kernels.triton.specialised.specialised_kernel` alone.
    """

    kbar: Tensor | None = None
    head_scale: Tensor | None = None
    key_bias: Tensor | None = None
    frame_q: Tensor | None = None
    frame_k: Tensor | None = None
    frame_table: Tensor | None = None
    frame_factors: Tensor | None = None
    pos_q: Tensor | None = None
    pos_k: Tensor | None = None
    distance_table: Tensor | None = None
    distance_factors: Tensor | None = None
    label_k: Tensor | None = None
    allow_q: Tensor | None = None
    items: Tensor | None = None
    head_map: Tensor | None = None
    bounds: Tensor | None = None
    col: Tensor | None = None
    takers: Tensor | None = None
    gains: Tensor | None = None
    partial_ptr: Tensor | None = None
    partial_col: Tensor | None = None
    chunk: Tensor | None = None
    perm_q: Tensor | None = None
    perm_k: Tensor | None = None
    k_valid: Tensor | None = None
    place_q: Tensor | None = None
    place_k: Tensor | None = None
    bit_words: Tensor | None = None
    bit_ids: Tensor | None = None
    seg0_k: Tensor | None = None
    seg0_v: Tensor | None = None
    seg0_bias: Tensor | None = None
    seg0_rows: Tensor | None = None
    seg1_k: Tensor | None = None
    seg1_v: Tensor | None = None
    seg1_bias: Tensor | None = None
    seg1_rows: Tensor | None = None
    unread: Tensor | None = None
    row_scale: Tensor | None = None
    residual: Tensor | None = None
    mix_mean: Tensor | None = None
    mix_amount: Tensor | None = None
    mix_rows: Tensor | None = None

    def pack(self) -> list[Tensor | None]:
        """The fields in order."""
        return [getattr(self, f.name) for f in fields(self)]


@dataclass(frozen=True)
class Numbers:
    """Sizes and flags. element: kind of test in :mod:`kernels.triton.element_masks`; mix: 0 none, 1 identity, 2 mean;
    variant: place in :data:`kernels.triton.settings.VARIANTS`."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    block_q: int
    block_k: int
    blocks_q: int
    blocks_k: int
    even: bool = False
    tokens_first: bool = False
    positive_only: bool = False
    split_from: int = 0
    splits: int = 1
    element: int = 0
    inverted: bool = False
    grid_y: int = 1
    grid_x: int = 1
    lo: int = 0
    hi: int = 0
    tail: bool = False
    mix: int = 0
    variant: int = 0

    @classmethod
    def unpack(cls, packed: Sequence[int]) -> Numbers:
        """What :meth:`pack` made."""
        return cls(*packed)  # type: ignore[arg-type]

    def pack(self) -> list[int]:
        """The fields in order."""
        return [int(x) for x in astuple(self)]


@dataclass(frozen=True)
class Scalars:
    """scale: on the logits; radius2, frame_scale: of a window."""

    scale: float
    radius2: float = 0.0
    frame_scale: float = 0.0

    def pack(self) -> list[float]:
        """The fields in order."""
        return [float(x) for x in astuple(self)]


def gather(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, s: Settings, tokens_first: bool) -> tuple[Tensors, Numbers, Scalars]:
    """The arguments of one call: logit parts of ``plan``, up to two segments, a tail read by rows, a row affine, one head mix.

    Nothing here waits for the device, and what follows from immutable parts of the plan is made once.
    """
    n_q, n_k = q.shape[2], k.shape[2]
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    lists = work_lists(plan, n_q, n_k, s.block_m, s.block_n)
    tensors: dict[str, Tensor | None] = {}
    numbers: dict[str, int | bool] = {}
    scalars: dict[str, float] = {}
    tensors |= rule_tensors(plan, k, blocks)
    if lists is not None:
        tensors |= _listed(lists, q, s)
        numbers |= {"split_from": lists.split_from * (lists.block_q // s.block_m), "splits": lists.splits}
    if blocks is not None:
        tensors |= _orders(blocks, n_k)
        if blocks.mask is not None:
            element_arguments(blocks, blocks.mask, tensors, numbers, scalars)
        if blocks.tail == "row":
            tensors |= {"unread": unread_bits(blocks), "k_valid": blocks.k.valid}
            numbers["tail"] = True
    for i, segment in enumerate(plan.extra_kv[:SEGMENTS]):
        tensors |= _segment(segment, i)
    if (affine := plan.row_affine) is not None:
        missed = affine.residual
        tensors |= {"row_scale": affine.scale.contiguous(), "residual": missed if missed.stride(-1) == 1 else missed.contiguous()}
    for mix in plan.head_mix[:1]:
        tensors |= {"mix_amount": mix.amount.float().contiguous(), "mix_rows": None if mix.rows is None else mix.rows.view(torch.uint8)}
        numbers["mix"] = 1 if mix.target == "identity" else 2
        if mix.target == "mean":
            tensors["mix_mean"] = mean_key(v).contiguous()
    block_q, block_k = (blocks.q.block, blocks.k.block) if blocks is not None else (s.block_m, s.block_n)
    blocks_q, blocks_k = (blocks.q.blocks, blocks.k.blocks) if blocks is not None else (-(-n_q // block_q), -(-n_k // block_k))
    return (
        Tensors(**tensors),
        Numbers(
            s.block_m, s.block_n, s.warps, s.stages, block_q, block_k, blocks_q, blocks_k, even=n_k == blocks_k * block_k,
            tokens_first=tokens_first, variant=VARIANTS.index(s.variant), positive_only=bool(plan.modulation and plan.modulation.positive_only), **numbers,  # type: ignore[arg-type]
        ),
        Scalars(scale, **scalars),
    )  # fmt: skip


def rule_tensors(plan: AttentionPlan, k: Tensor, blocks: BlockPlan | None) -> dict[str, Tensor | None]:
    """Tables, labels and bias; vectors over keys in place order where ``blocks`` is given, for keys that will be in it."""
    mod, labels, bias = plan.modulation, plan.labels, plan.key_bias
    keys = blocks.k if blocks is not None and not blocks.k.identity else None
    found: dict[str, Tensor | None] = {}

    def placed(part: FrameTable | DistanceTable | Labels) -> FrameTable | DistanceTable | Labels:
        return part if keys is None else in_place_order(part, blocks.q, keys)  # type: ignore[union-attr]

    if mod is not None and mod.center_keys:
        found["kbar"] = mean_key(k).contiguous()
    if mod is not None and mod.scale is not None:
        found["head_scale"] = mod.scale.float()
    if mod is not None and (t := mod.frames) is not None:
        found |= _contiguous(frame_q=t.ids_q, frame_k=placed(t).ids_k, frame_table=t.classes, frame_factors=t.factors)  # type: ignore[union-attr]
    if mod is not None and (d := mod.distance) is not None:
        found |= _contiguous(pos_q=d.pos_q, pos_k=placed(d).pos_k, distance_table=d.classes, distance_factors=d.factors)  # type: ignore[union-attr]
    if labels is not None:
        found |= _contiguous(label_k=placed(labels).label_k, allow_q=labels.allow_q)  # type: ignore[union-attr]
    if bias is not None:
        found["key_bias"] = bias.float() if keys is None else bias.float().index_select(-1, readable(keys))
    return found


def _listed(lists: WorkLists, q: Tensor, s: Settings) -> dict[str, Tensor | None]:
    partial = lists.partial
    return _contiguous(
        items=launch_order(lists, q.shape[0], q.shape[1], lists.block_q // s.block_m),
        head_map=lists.head_map.int(),
        bounds=lists.bounds,
        col=lists.col,
        gains=lists.gains,
        partial_ptr=None if partial is None else partial.ptr,
        partial_col=None if partial is None else partial.col,
        chunk=lists.chunk,
    )


def _orders(blocks: BlockPlan, n_k: int) -> dict[str, Tensor | None]:
    q_side, k_side = blocks.q, blocks.k
    return {
        "perm_q": None if q_side.identity else q_side.perm,
        "perm_k": None if k_side.identity else k_side.perm,
        "k_valid": None if k_side.identity else k_side.valid,
    }


def element_arguments(blocks: BlockPlan, mask: ElementMask, tensors: dict, numbers: dict, scalars: dict) -> None:
    """What the test of the partial blocks needs."""
    numbers["inverted"] = mask.inverted
    if isinstance(mask, Bits):
        numbers["element"] = 4
        tensors |= _contiguous(bit_words=mask.words, bit_ids=mask.ids)
        return
    tensors |= {"place_q": blocks.q.pos, "place_k": blocks.k.pos}
    _, numbers["grid_y"], numbers["grid_x"] = blocks.q.grid or (1, 1, 1)
    if isinstance(mask, Window):
        numbers["element"], scalars["radius2"], scalars["frame_scale"] = 1, mask.radius * mask.radius, mask.frame_scale
    elif isinstance(mask, Band):
        numbers["element"], numbers["hi"] = 2, mask.half_width
    elif isinstance(mask, Frames):
        numbers["element"], numbers["lo"], numbers["hi"] = 3, mask.lo, mask.hi
    else:
        raise TypeError(f"no kernel tests pairs by {type(mask).__name__}")


def _segment(e: ExtraKV, i: int) -> dict[str, Tensor | None]:
    return {
        f"seg{i}_k": e.k.contiguous(),
        f"seg{i}_v": e.v.contiguous(),
        f"seg{i}_bias": None if e.bias is None else e.bias.float().contiguous(),
        f"seg{i}_rows": None if e.rows is None else e.rows.contiguous().view(torch.uint8),
    }


def unread_bits(blocks: BlockPlan) -> Tensor:
    """uint8 [G, nQ, ceil(nK / 8)]: the bit of each block that is not read, see :func:`kernels.bits.pack`."""
    return with_part(blocks, "unread", lambda: pack(blocks.kinds() == EMPTY))


def _contiguous(**parts: Tensor | None) -> dict[str, Tensor | None]:
    return {name: None if x is None else x.contiguous() for name, x in parts.items()}
