"""The forward pass for Hopper with a role for each warp group: one warp brings keys and values, two warp groups multiply them.

Warp specialisation and the overlap of products and softmax after FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608, sections
3.1 and 3.2), here over block lists, in Triton's lower-level dialect Gluon. It runs what :mod:`kernels.triton.forward` runs without
extra segments and a tail, takes the same arguments and adds in the same order; what is left out goes there
(:func:`kernels.triton.specialised_launch.fits`).

A program holds 128 queries, 64 for each group that multiplies. Tiles of K and V pass through rings of STAGES places in shared
memory. A place of a ring has two barriers: *full* says that the copy engine has written it, *free* that both groups have read it.

The order within a round matters, and not only as written here: the assembler moves the wait for a product up to where it was
begun, unless something that cannot move stands between. The product of weights and values is such a thing, as it needs the softmax.
So the logits of the *next* tile are formed while the softmax of this one is taken, and both products are waited for at the end
of the round (``tools/aot_statistics.py`` shows the outcome). While one group waits, the other one's products run.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .epilogue import finish_rows, store_part
from .items import item_at, range_of, tile_at
from .logit_math import softmax_of_products
from .pair_rules import tokens_at
from .rounds import ruled_logits

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
GROUPS = gl.constexpr(2)
"""Warp groups that multiply."""
GROUP_ROWS = gl.constexpr(64)
"""Queries of each: what one matrix instruction takes."""
REGISTERS, BRINGER_REGISTERS = gl.constexpr(240), gl.constexpr(24)
"""Per thread of a multiplying and of the bringing warp group: 2 x 128 x 240 + 128 x 24 is what a multiprocessor has."""

SIZES = (
    "n_items", "n_q", "n_k", "heads", "group", "tiles_q", "rows_q", "blocks_k", "frames_q", "frames_k", "distances", "split_from", "splits",
    "grid_y", "grid_x", "lo", "hi",
)  # fmt: skip
"""Arguments that take any value, as in :data:`kernels.triton.forward.SIZES`."""


@gluon.jit
def _bring(
    k_engine, v_engine, rings, lists,
    BLOCK_N: gl.constexpr, PER_ROW: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    LISTED: gl.constexpr, SPLIT: gl.constexpr, RULES: gl.constexpr, ELEMENT: gl.constexpr,
):  # fmt: skip
    """The warp that has the copy engine fill the rings, as far ahead as they have room, on through the items of a program."""
    k_tiles, v_tiles, k_full, v_full, k_free, v_free = rings
    items, head_map, bounds, col, partial_ptr, partial_col, chunk, map_sb, map_sh, n_items, heads, group, tiles_q, rows_q, blocks_k, split_from, splits = lists
    KINDS: gl.constexpr = 3 if RULES else 1
    PER_BLOCK: gl.constexpr = BLOCK_K // BLOCK_N
    brought = 0
    for at in range(gl.program_id(0), n_items, gl.num_programs(0)):
        b, h, tile, part = item_at(at, items, heads, tiles_q, split_from, splits, LISTED)
        list_set = gl.load(head_map + b * map_sb + h * map_sh).to(gl.int64) if LISTED else 0
        for KIND in gl.static_range(0, 3):
            if KIND == 0 or (KIND == 1 and RULES) or (KIND == 2 and ELEMENT != 0):
                first, last, _ = range_of(tile, part, list_set, bounds, partial_ptr, chunk, rows_q, blocks_k, split_from, KIND, KINDS, PER_ROW, LISTED, SPLIT)
                for step in range(first * PER_BLOCK, last * PER_BLOCK):
                    col0, _ = tile_at(step, True, partial_col if KIND == 2 else col, None, 0, BLOCK_K, BLOCK_N, LISTED, False)
                    place = brought % STAGES
                    # Of a barrier that never was complete, the round before the first counts as over.
                    before = ((brought // STAGES) & 1) ^ 1
                    corner = [b.to(gl.int32), (h // group).to(gl.int32), col0, 0]
                    mbarrier.wait(k_free.index(place), before)
                    mbarrier.expect(k_full.index(place), k_engine.block_type.nbytes)
                    tma.async_copy_global_to_shared(k_engine, corner, k_full.index(place), k_tiles.index(place))
                    mbarrier.wait(v_free.index(place), before)
                    mbarrier.expect(v_full.index(place), v_engine.block_type.nbytes)
                    tma.async_copy_global_to_shared(v_engine, corner, v_full.index(place), v_tiles.index(place))
                    brought += 1


@gluon.jit
def _wait_for(full, number, STAGES: gl.constexpr):
    """Until tile ``number`` of those brought is there."""
    mbarrier.wait(full.index(number % STAGES), (number // STAGES) & 1)


@gluon.jit
def _products(q_own, k_tiles, place, BLOCK_N: gl.constexpr, D: gl.constexpr, LAYOUT: gl.constexpr):
    """Begin the products [GROUP_ROWS, BLOCK_N] of the group's queries with the tile at a place of the ring."""
    nothing = gl.full([GROUP_ROWS, BLOCK_N], 0.0, gl.float32, LAYOUT)
    return warpgroup_mma(q_own, k_tiles.index(place).reshape([BLOCK_N, D]).permute([1, 0]), nothing, use_acc=False, is_async=True)


@gluon.jit
def _weigh(
    s, step, col0, live, uniform_from, m, total, acc, b, h, unit, rows, rules,
    KIND: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr,
    FRAMES: gl.constexpr, DISTANCE: gl.constexpr, LABELS: gl.constexpr, ELEMENT: gl.constexpr, INVERTED: gl.constexpr,
    EVEN_N: gl.constexpr, POSITIVE_ONLY: gl.constexpr, CENTER: gl.constexpr, HEAD_SCALE: gl.constexpr, BIAS: gl.constexpr,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr, TYPE: gl.constexpr,
):  # fmt: skip
    """One step of the running softmax over the products s of a step of a kind of block: (weights, m, total, acc)."""
    center, per_head_scale, frame_i, at_i, allow_i, place_i, row_in = rows
    (
        gains, frame_k, frame_table, frame_factors, frames_q, frames_k, pos_k, distance_table, distance_factors, distances,
        label_k, label_sb, place_k, bit_words, bit_ids, grid_y, grid_x, radius2, frame_scale, lo, hi, key_bias, bias_sb, bias_sh, bias_sn,
    ) = rules  # fmt: skip
    within = gl.arange(0, BLOCK_N, gl.SliceLayout(0, S_LAYOUT))
    uniform, gain = False, 1.0
    if KIND == 0 and (FRAMES or DISTANCE):
        uniform = step >= uniform_from * (BLOCK_K // BLOCK_N)
        gain = gl.load(gains + step // (BLOCK_K // BLOCK_N))
    s = ruled_logits(
        s, step, col0, within, live, b, unit, center, per_head_scale, uniform, gain, frame_i, at_i, allow_i, place_i, row_in,
        frame_k, frame_table, frame_factors, frames_q, frames_k, pos_k, distance_table, distance_factors, distances,
        label_k, label_sb, place_k, bit_words, bit_ids, grid_y, grid_x, radius2, frame_scale, lo, hi,
        KIND, BLOCK_N, BLOCK_Q, BLOCK_K, FRAMES, DISTANCE, LABELS, ELEMENT, INVERTED, EVEN_N, POSITIVE_ONLY, CENTER, HEAD_SCALE, True,
    )  # fmt: skip
    if BIAS:
        bias = gl.load(key_bias + b * bias_sb + h * bias_sh + (col0 + within).to(gl.int64) * bias_sn, mask=within < live, other=0.0)
        s = s * unit + bias[None, :] * LOG2E
    p, m, shrink = softmax_of_products(s, 1.0 if BIAS else unit, m)
    total = total * shrink + gl.sum(p, 1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, O_LAYOUT))[:, None]
    return gl.convert_layout(p.to(TYPE), P_LAYOUT), m, total, acc


@gluon.jit
def _attend(
    GROUP: gl.constexpr, q, q_tiles, q_sb, q_sh, q_sn, n_q, n_k, scale, rings, lists, takers, of_rows, rules, ends,
    D: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, LISTED: gl.constexpr, SPLIT: gl.constexpr,
    FRAMES: gl.constexpr, DISTANCE: gl.constexpr, LABELS: gl.constexpr, ELEMENT: gl.constexpr, INVERTED: gl.constexpr, PAIRED: gl.constexpr,
    Q_ORDERED: gl.constexpr, K_ORDERED: gl.constexpr, EVEN_N: gl.constexpr,
    POSITIVE_ONLY: gl.constexpr, CENTER: gl.constexpr, HEAD_SCALE: gl.constexpr, BIAS: gl.constexpr,
    AFFINE: gl.constexpr, MIX: gl.constexpr, MIX_ROWS: gl.constexpr,
):  # fmt: skip
    """A warp group that multiplies: queries GROUP * GROUP_ROWS to (GROUP + 1) * GROUP_ROWS of each item's tile."""
    k_tiles, v_tiles, k_full, v_full, k_free, v_free = rings
    items, head_map, bounds, col, partial_ptr, partial_col, chunk, map_sb, map_sh, n_items, heads, group, tiles_q, rows_q, blocks_k, split_from, splits = lists
    kbar, head_scale, head_scale_sh, frame_q, pos_q, allow_q, allow_sb, place_q, k_valid = of_rows
    (
        o, lse, perm_q, row_scale, residual, mix_v, mix_mean, mix_amount, mix_rows, part_o, part_lse,
        o_sb, o_sh, o_sn, mix_sb, mix_sh, mix_sn, row_scale_sb, row_scale_sh, residual_sb, residual_sh, residual_sn,
    ) = ends  # fmt: skip
    TYPE: gl.constexpr = q.dtype.element_ty
    RULES: gl.constexpr = FRAMES or DISTANCE or LABELS
    KINDS: gl.constexpr = 3 if RULES else 1
    PER_BLOCK: gl.constexpr = BLOCK_K // BLOCK_N
    PER_ROW: gl.constexpr = BLOCK_Q // (GROUPS * GROUP_ROWS)
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    # Of the rows as they are read: eight channels, or 16 bytes, to a thread.
    Q_LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    q_own = q_tiles.index(GROUP)
    unit = scale * LOG2E
    brought = 0
    for at in range(gl.program_id(0), n_items, gl.num_programs(0)):
        b, h, tile, part = item_at(at, items, heads, tiles_q, split_from, splits, LISTED)
        list_set = gl.load(head_map + b * map_sb + h * map_sh).to(gl.int64) if LISTED else 0
        place0 = tile * (GROUPS * GROUP_ROWS) + GROUP * GROUP_ROWS

        token, live_row = tokens_at(perm_q, place0 + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, Q_LAYOUT)), n_q, Q_ORDERED)
        dims = gl.arange(0, D, gl.SliceLayout(0, Q_LAYOUT))
        own = gl.load(q + b * q_sb + h * q_sh + token[:, None] * q_sn + dims[None, :], mask=live_row[:, None], other=0.0)
        q_own.store(own)
        fence_async_shared()  # what multiplies reads shared memory by another way than what stored

        center = gl.full([GROUP_ROWS], 0.0, gl.float32, gl.SliceLayout(1, S_LAYOUT))
        if CENTER:
            mean = gl.load(kbar + (b * (heads // group) + h // group) * D + dims)
            center = gl.convert_layout(gl.sum(own.to(gl.float32) * mean[None, :], 1), gl.SliceLayout(1, S_LAYOUT))
        per_head_scale = 1.0
        if HEAD_SCALE:
            per_head_scale = gl.load(head_scale + h * head_scale_sh)
        place_in = place0 + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, S_LAYOUT))
        token_in, live_in = tokens_at(perm_q, place_in, n_q, Q_ORDERED)
        rows = (
            center, per_head_scale,
            gl.load(frame_q + token_in, mask=live_in, other=-1).to(gl.int32) if FRAMES else None,
            gl.load(pos_q + token_in, mask=live_in, other=-1).to(gl.int32) if DISTANCE else None,
            gl.load(allow_q + b * allow_sb + token_in, mask=live_in, other=0) if LABELS else None,
            gl.load(place_q + place_in) if ELEMENT > 0 and ELEMENT < 4 else None,
            place_in % BLOCK_Q,
        )  # fmt: skip

        m = gl.full([GROUP_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
        total = gl.full([GROUP_ROWS], 0.0, gl.float32, gl.SliceLayout(1, S_LAYOUT))
        acc = gl.full([GROUP_ROWS, D], 0.0, gl.float32, O_LAYOUT)
        for KIND in gl.static_range(0, 3):
            if KIND == 0 or (KIND == 1 and RULES) or (KIND == 2 and ELEMENT != 0):
                columns = partial_col if KIND == 2 else col
                first, last, uniform_from = range_of(tile, part, list_set, bounds, partial_ptr, chunk, rows_q, blocks_k, split_from, KIND, KINDS, PER_ROW, LISTED, SPLIT)
                first, last = first * PER_BLOCK, gl.maximum(last, first) * PER_BLOCK
                begun = brought - first
                if PAIRED:
                    for step in range(first, last):
                        _wait_for(k_full, begun + step, STAGES)
                        place = (begun + step) % STAGES
                        # What the other group's row asks for is only waited for: all barriers count both groups, in turn.
                        if ((gl.load(takers + step // PER_BLOCK).to(gl.int32) >> GROUP) & 1) != 0:
                            col0, live = tile_at(step, True, columns, k_valid, n_k, BLOCK_K, BLOCK_N, LISTED, K_ORDERED)
                            s = warpgroup_mma_wait(0, deps=[_products(q_own, k_tiles, place, BLOCK_N, D, S_LAYOUT)])
                            mbarrier.arrive(k_free.index(place))
                            p, m, total, acc = _weigh(
                                s, step, col0, live, uniform_from, m, total, acc, b, h, unit, rows, rules,
                                KIND, BLOCK_N, BLOCK_Q, BLOCK_K, FRAMES, DISTANCE, LABELS, ELEMENT, INVERTED, EVEN_N, POSITIVE_ONLY, CENTER, HEAD_SCALE, BIAS,
                                S_LAYOUT, O_LAYOUT, P_LAYOUT, TYPE,
                            )  # fmt: skip
                            _wait_for(v_full, begun + step, STAGES)
                            acc = warpgroup_mma(p, v_tiles.index(place).reshape([BLOCK_N, D]), acc)
                        else:
                            mbarrier.arrive(k_free.index(place))
                            _wait_for(v_full, begun + step, STAGES)
                        mbarrier.arrive(v_free.index(place))
                elif first < last:
                    _wait_for(k_full, begun + first, STAGES)
                    place = (begun + first) % STAGES
                    col0, live = tile_at(first, True, columns, k_valid, n_k, BLOCK_K, BLOCK_N, LISTED, K_ORDERED)
                    s = warpgroup_mma_wait(0, deps=[_products(q_own, k_tiles, place, BLOCK_N, D, S_LAYOUT)])
                    mbarrier.arrive(k_free.index(place))
                    for step in range(first + 1, last):
                        _wait_for(k_full, begun + step, STAGES)
                        next_place = (begun + step) % STAGES
                        next_s = _products(q_own, k_tiles, next_place, BLOCK_N, D, S_LAYOUT)
                        p, m, total, acc = _weigh(
                            s, step - 1, col0, live, uniform_from, m, total, acc, b, h, unit, rows, rules,
                            KIND, BLOCK_N, BLOCK_Q, BLOCK_K, FRAMES, DISTANCE, LABELS, ELEMENT, INVERTED, EVEN_N, POSITIVE_ONLY, CENTER, HEAD_SCALE, BIAS,
                            S_LAYOUT, O_LAYOUT, P_LAYOUT, TYPE,
                        )  # fmt: skip
                        col0, live = tile_at(step, True, columns, k_valid, n_k, BLOCK_K, BLOCK_N, LISTED, K_ORDERED)
                        _wait_for(v_full, begun + step - 1, STAGES)
                        added = warpgroup_mma(p, v_tiles.index(place).reshape([BLOCK_N, D]), acc, is_async=True)
                        s, acc = warpgroup_mma_wait(0, deps=[next_s, added])
                        mbarrier.arrive(k_free.index(next_place))
                        mbarrier.arrive(v_free.index(place))
                        place = next_place
                    p, m, total, acc = _weigh(
                        s, last - 1, col0, live, uniform_from, m, total, acc, b, h, unit, rows, rules,
                        KIND, BLOCK_N, BLOCK_Q, BLOCK_K, FRAMES, DISTANCE, LABELS, ELEMENT, INVERTED, EVEN_N, POSITIVE_ONLY, CENTER, HEAD_SCALE, BIAS,
                        S_LAYOUT, O_LAYOUT, P_LAYOUT, TYPE,
                    )  # fmt: skip
                    _wait_for(v_full, begun + last - 1, STAGES)
                    acc = warpgroup_mma(p, v_tiles.index(place).reshape([BLOCK_N, D]), acc)
                    mbarrier.arrive(v_free.index(place))
                brought += last - first

        m, total = gl.convert_layout(m, gl.SliceLayout(1, O_LAYOUT)), gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))
        seen = total > 0
        divisor = gl.where(seen, total, 1.0)
        out = acc / divisor[:, None]
        row_lse = gl.where(seen, (m + gl.log2(divisor)) * LN2, float("-inf"))
        within = GROUP * GROUP_ROWS + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, O_LAYOUT))
        token, live_row = tokens_at(perm_q, tile * (GROUPS * GROUP_ROWS) + within, n_q, Q_ORDERED)
        dims = gl.arange(0, D, gl.SliceLayout(0, O_LAYOUT))
        live_dim = dims < D
        if SPLIT:
            if tile >= split_from:
                store_part(out, row_lse, within, b, h, tile, part, heads, tiles_q, split_from, splits, dims, live_dim, part_o, part_lse, D, GROUPS * GROUP_ROWS)
            live_row = live_row & (tile < split_from)
        finish_rows(
            out, row_lse, token, live_row, b, h, heads, group, n_q, dims, live_dim,
            o, lse, o_sb, o_sh, o_sn, row_scale, row_scale_sb, row_scale_sh, residual, residual_sb, residual_sh, residual_sn,
            mix_v, mix_sb, mix_sh, mix_sn, mix_mean, mix_amount, mix_rows, D, AFFINE, MIX, MIX_ROWS,
        )  # fmt: skip


@gluon.jit(do_not_specialize=SIZES)
def specialised_kernel(
    q, k_engine, v_engine, o, lse,
    kbar, head_scale, key_bias,
    frame_q, frame_k, frame_table, frame_factors,
    pos_q, pos_k, distance_table, distance_factors,
    label_k, allow_q,
    items, head_map, bounds, col, takers, gains, partial_ptr, partial_col, chunk,
    perm_q, k_valid, place_q, place_k, bit_words, bit_ids,
    row_scale, residual, mix_v, mix_mean, mix_amount, mix_rows, part_o, part_lse,
    q_sb, q_sh, q_sn, o_sb, o_sh, o_sn, mix_sb, mix_sh, mix_sn,
    bias_sb, bias_sh, bias_sn, row_scale_sb, row_scale_sh, residual_sb, residual_sh, residual_sn,
    label_sb, allow_sb, map_sb, map_sh, head_scale_sh,
    n_items, n_q, n_k, heads, group, tiles_q, rows_q, blocks_k,
    frames_q, frames_k, distances, split_from, splits, grid_y, grid_x, lo, hi, radius2, frame_scale, scale,
    D: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    LISTED: gl.constexpr, FRAMES: gl.constexpr, DISTANCE: gl.constexpr, LABELS: gl.constexpr, ELEMENT: gl.constexpr, INVERTED: gl.constexpr,
    PAIRED: gl.constexpr, SPLIT: gl.constexpr, Q_ORDERED: gl.constexpr, K_ORDERED: gl.constexpr, EVEN_N: gl.constexpr,
    POSITIVE_ONLY: gl.constexpr, CENTER: gl.constexpr, HEAD_SCALE: gl.constexpr, BIAS: gl.constexpr,
    AFFINE: gl.constexpr, MIX: gl.constexpr, MIX_ROWS: gl.constexpr,
):  # fmt: skip
    """Arguments as in :func:`kernels.triton.forward.forward_kernel`, except for:

    k_engine, v_engine: tensor descriptors of k, v [B,Hk,n_k,D] in blocks of [1,1,BLOCK_N,D]. n_items: of ``items``, or of the
    (batch element, head, tile) where there are no lists. The grid may have fewer programs than items: each takes every n-th. STAGES:
    tiles of K and of V that are held at a time. PAIRED: the rows of the plan are GROUP_ROWS long, each group has one of a pair, and
    the list is that of both: takers uint8, one per entry of ``col``, has bit g where group g reads the block.
    """
    q_tiles = gl.allocate_shared_memory(q.dtype.element_ty, [GROUPS, GROUP_ROWS, D], gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, D], q.dtype.element_ty))
    k_tiles = gl.allocate_shared_memory(k_engine.dtype, [STAGES, 1, 1, BLOCK_N, D], k_engine.layout)
    v_tiles = gl.allocate_shared_memory(v_engine.dtype, [STAGES, 1, 1, BLOCK_N, D], v_engine.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(STAGES):
        mbarrier.init(k_full.index(place), count=1)
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(k_free.index(place), count=GROUPS)
        mbarrier.init(v_free.index(place), count=GROUPS)
    fence_async_shared()

    rings = (k_tiles, v_tiles, k_full, v_full, k_free, v_free)
    lists = (
        items, head_map, bounds, col, partial_ptr, partial_col, chunk, map_sb, map_sh,
        n_items, heads, group, tiles_q, rows_q, blocks_k, split_from, splits,
    )  # fmt: skip
    of_rows = (kbar, head_scale, head_scale_sh, frame_q, pos_q, allow_q, allow_sb, place_q, k_valid)
    rules = (
        gains, frame_k, frame_table, frame_factors, frames_q, frames_k, pos_k, distance_table, distance_factors, distances,
        label_k, label_sb, place_k, bit_words, bit_ids, grid_y, grid_x, radius2, frame_scale, lo, hi, key_bias, bias_sb, bias_sh, bias_sn,
    )  # fmt: skip
    ends = (
        o, lse, perm_q, row_scale, residual, mix_v, mix_mean, mix_amount, mix_rows, part_o, part_lse,
        o_sb, o_sh, o_sn, mix_sb, mix_sh, mix_sn, row_scale_sb, row_scale_sh, residual_sb, residual_sh, residual_sn,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (_attend, (
                gl.constexpr(0), q, q_tiles, q_sb, q_sh, q_sn, n_q, n_k, scale, rings, lists, takers, of_rows, rules, ends,
                D, BLOCK_N, BLOCK_Q, BLOCK_K, STAGES, LISTED, SPLIT, FRAMES, DISTANCE, LABELS, ELEMENT, INVERTED, PAIRED,
                Q_ORDERED, K_ORDERED, EVEN_N, POSITIVE_ONLY, CENTER, HEAD_SCALE, BIAS, AFFINE, MIX, MIX_ROWS,
            )),
            (_attend, (
                gl.constexpr(1), q, q_tiles, q_sb, q_sh, q_sn, n_q, n_k, scale, rings, lists, takers, of_rows, rules, ends,
                D, BLOCK_N, BLOCK_Q, BLOCK_K, STAGES, LISTED, SPLIT, FRAMES, DISTANCE, LABELS, ELEMENT, INVERTED, PAIRED,
                Q_ORDERED, K_ORDERED, EVEN_N, POSITIVE_ONLY, CENTER, HEAD_SCALE, BIAS, AFFINE, MIX, MIX_ROWS,
            )),
            (_bring, (k_engine, v_engine, rings, lists, BLOCK_N, BLOCK_Q // (GROUPS * GROUP_ROWS), BLOCK_K, STAGES, LISTED, SPLIT, FRAMES or DISTANCE or LABELS, ELEMENT)),
        ],
        [4, 1],
        [REGISTERS, BRINGER_REGISTERS],
    )  # fmt: skip
