"""FlexAttention: the tables it is given, its uncompiled form as a second opinion on block plans, and what it declines."""

import dataclasses
import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, BackendUnavailable, Trace, attend, by_frame, raster, reference_attend
from attention_loom.kernels.blocks import EMPTY, FULL, PARTIAL
from attention_loom.kernels.builders import from_bool
from attention_loom.kernels.flex import block_mask, block_tables
from kernel_cases import CASES, TOLERANCE, Shape, assert_close, assert_lse_close, labels, tensors
from plan_truth import token_mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

# Each stands for one rule; the uncompiled form takes about a second for each new one.
CHOSEN = {
    "stock-gqa", "frames-ultravico-bf16", "distance-masked-frames-signed", "frames-scale", "bias-nothing-left", "labels-batch", "labels-empty-rows",
    "segments-rows", "everything", "blocks-empty-rows", "blocks-gqa", "blocks-per-batch", "blocks-tiles", "blocks-window-video", "blocks-band-inverted",
    "blocks-frame-range", "blocks-bits-inverted", "blocks-labels-band", "blocks-ultravico", "blocks-tail-centroid", "blocks-everything",
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES if c.id in CHOSEN])
def test_a_second_opinion(case):
    q, k, v = tensors(case.shape, case.dtype, case.layout)
    plan = case.build(case.shape, case.dtype)
    want, want_lse = reference_attend(q, k, v, plan, return_lse=True)
    o, lse = attend(q, k, v, plan, backend="flex", return_lse=True, trace=Trace())
    tolerance, lse_tolerance = TOLERANCE[case.dtype]
    assert o.dtype == case.dtype
    assert lse.dtype == torch.float32
    assert_close("o", o, want, 3 * tolerance if plan.rotation else tolerance)
    assert_lse_close(lse, want_lse, 5 * lse_tolerance if plan.rotation else lse_tolerance)


def test_every_chosen_case_exists():
    assert {c.id for c in CASES} >= CHOSEN


def test_the_log_sum_exp_is_natural():
    q = torch.zeros(1, 1, 4, 16)
    _, lse = attend(q, q, q, AttentionPlan(key_bias=torch.zeros(1, 1, 4)), backend="flex", return_lse=True)
    assert torch.allclose(lse, torch.full_like(lse, math.log(4)))


# --- tables --------------------------------------------------------------------------------------------------------------


def some_plan(groups=2):
    order = by_frame(45, 8, (2, 4, 5), 2)  # ragged: 20 tokens a frame in blocks of 8, free tokens at both ends
    kinds = torch.rand(groups, order.blocks, order.blocks, generator=torch.Generator().manual_seed(0))
    return from_bool(kinds < 0.3, order, order)


def listed(counts, columns, b, h):
    return [row[:n].tolist() for row, n in zip(columns[b, h].tolist() and columns[b, h], counts[b, h].tolist(), strict=True)]


@pytest.mark.parametrize("whole", [True, False])
def test_tables_list_every_block_once_and_look_at_those_with_dead_keys(whole):
    plan = dataclasses.replace(some_plan(), head_map=torch.tensor([[0, 1, 1]]))
    counts, columns, full_counts, full_columns = block_tables(plan, whole)
    assert {x.dtype for x in (counts, columns, full_counts, full_columns)} == {torch.int32}
    assert counts.shape == (1, 3, plan.q.blocks)
    for h, g in enumerate((0, 1, 1)):
        looked_at, read_whole = listed(counts, columns, 0, h), listed(full_counts, full_columns, 0, h)
        for row in range(plan.q.blocks):
            wanted = [c for c in range(plan.k.blocks) if plan.kinds()[g, row, c] != EMPTY]
            alive = [c for c in wanted if plan.k.valid[c] == plan.k.block]
            assert read_whole[row] == (alive if whole else [])
            assert looked_at[row] == [c for c in wanted if c not in read_whole[row]]


def test_the_block_mask_and_its_element_test_say_what_the_plan_says():
    plan = some_plan()
    mask = block_mask(AttentionPlan(blocks=plan), 1, 2)
    assert mask.shape == (1, 2, plan.q.padded, plan.k.padded)
    assert torch.equal(mask.to_dense()[0] != 0, plan.kinds() != EMPTY)
    places = torch.arange(plan.q.padded)
    for h in range(2):
        read = mask.mask_mod(torch.tensor(0), torch.tensor(h), places[:, None], places[None, :])
        back = plan.q.inverse.long()
        assert torch.equal(read[back][:, back], token_mask(plan)[h])
        assert not read[:, plan.k.perm < 0].any()


def test_places_are_tokens_where_the_order_is_the_identity():
    order = raster(45, 8)
    plan = from_bool(torch.eye(6, dtype=torch.bool), order, order)
    mask = block_mask(AttentionPlan(blocks=plan), 1, 1)
    assert mask.shape == (1, 1, 45, 45)
    assert bool((plan.kinds() == FULL).sum() == 6) and int(mask.full_kv_num_blocks.sum()) == 6


def test_labels_alone_look_at_every_block():
    s = Shape(n_q=200, n_k=300)
    mask = block_mask(AttentionPlan(labels=labels(s)), 1, 2)
    assert mask.kv_num_blocks.tolist() == [[[3, 3]]]
    assert mask.full_kv_num_blocks is None


def test_a_plan_is_exported_once():
    plan = some_plan()
    assert (plan.kinds() != PARTIAL).all()
    assert block_mask(AttentionPlan(blocks=plan), 1, 2) is block_mask(AttentionPlan(blocks=plan), 1, 2)


# --- what it declines ----------------------------------------------------------------------------------------------------


def refused(*shape, **more) -> str:
    q = torch.zeros(*shape, **more)
    with pytest.raises(BackendUnavailable) as found:
        attend(q, q, q, AttentionPlan(key_bias=torch.zeros(1, 1, shape[2])), backend="flex")
    return str(found.value)


def test_it_declines_with_a_reason():
    assert "8193 tokens are more than 8192" in refused(1, 1, 8193, 16)
    assert "head width 8 is outside 16 to 256" in refused(1, 1, 9, 8)
    assert "it has no gradient and one is needed" in refused(1, 1, 9, 16, requires_grad=True)
    assert "it does not take torch.float64" in refused(1, 1, 9, 16, dtype=torch.float64)


def test_auto_does_not_take_it_on_a_cpu():
    q = torch.zeros(1, 1, 9, 16)
    attend(q, q, q, AttentionPlan(key_bias=torch.zeros(1, 1, 9)), trace=(t := Trace()))
    assert dict(t.declined)["flex"] == "on a CPU it is slow and runs only when asked for by name"
