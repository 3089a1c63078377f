"""Properties of block plans over random ones: lists, builders and algebra against a mask written out pair by pair."""

import dataclasses
import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, Band, Bits, BlockPlan, Frames, Window, attend, by_frame, by_tile, merge, raster
from attention_loom.kernels.algebra import coarsen, complement, force, intersect, refine, union
from attention_loom.kernels.bits import pack, pack_bits, to_bits, unpack
from attention_loom.kernels.block_mask import admitted
from attention_loom.kernels.blocks import EMPTY, FULL, PARTIAL
from attention_loom.kernels.builders import from_bool, from_global, from_sigma, from_topk, from_topp
from attention_loom.kernels.check_blocks import check_blocks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_truth import token_mask

MANY = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SOME = settings(MANY, max_examples=60)

TESTS = st.sampled_from([None, Window(2.5), Window(2.0, 0.7, inverted=True), Band(2), Frames(-1, 0), Frames(0, 1, inverted=True), "bits"])


@st.composite
def orders(draw, block: int):
    """The order of one side: up to about fifty tokens, by frames, tiles or as they stand, free tokens at either end."""
    if draw(st.booleans()):
        return raster(draw(st.integers(1, min(3 * block, 40))), block)
    grid = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    start, after = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    tokens = start + math.prod(grid) + after
    if draw(st.booleans()):
        return by_frame(tokens, block, grid, start)
    return by_tile(tokens, block, grid, start, (1, 2, 2) if block < 8 else (2, 2, 2))


@st.composite
def plans(draw, q=None, k=None, tests=TESTS, groups=None) -> BlockPlan:
    """A random plan; both sides on one order unless given."""
    test = draw(tests)
    block = 32 if test == "bits" else draw(st.sampled_from([4, 8]))
    q = draw(orders(block)) if q is None else q
    k = q if k is None else k
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    groups = draw(st.integers(1, 3)) if groups is None else groups
    shape = (groups, q.blocks, k.blocks)
    kinds = torch.rand(shape, generator=g) < draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    if test is None or (q.grid is None and test != "bits"):
        return from_bool(kinds, q, k)
    partial = torch.rand(shape, generator=g) < 0.4
    if test == "bits":
        pairs = torch.rand(int(partial.sum()), q.block, k.block, generator=g) < 0.5
        pairs[::2] = pairs[:1].clone()  # some equal ones
        test = Bits(*pack_bits(pairs))
    return from_bool(kinds, q, k, partial=partial, test=test)


def implied(plan: BlockPlan) -> torch.Tensor:
    """The token mask by the plan's own function."""
    rows, keys = torch.arange(plan.q.tokens), torch.arange(plan.k.tokens)
    return torch.stack([admitted(plan, g, rows, keys) for g in range(plan.groups)])


@MANY
@given(plans())
def test_every_plan_keeps_the_invariants_and_means_what_its_lists_say(plan):
    check_blocks(plan)
    truth = token_mask(plan)
    assert torch.equal(implied(plan), truth)
    area = plan.q.valid[:, None] * plan.k.valid[None, :] * (plan.kinds() != EMPTY)
    assert math.isclose(float(plan.density()), float(area.sum() / area.shape[0] / (plan.q.tokens * plan.k.tokens)), rel_tol=1e-5)


@SOME
@given(st.data())
def test_sides_may_differ(data):
    q, k = data.draw(orders(4)), data.draw(orders(8))
    plan = data.draw(plans(q, k, st.just(None)))
    check_blocks(plan)
    assert torch.equal(implied(plan), token_mask(plan))


@SOME
@given(st.data())
def test_builders_from_scores_keep_the_invariants(data):
    order = data.draw(orders(4))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    scores = torch.rand(2, 2, order.blocks, order.blocks, generator=g).softmax(-1)
    for plan in (
        from_topk(scores, [0, 2], order, order),
        from_topp(scores, 0.4, order, order),
        from_global(scores, 0.8, order, order),
        from_sigma(scores, 1.0, order, order),
    ):
        check_blocks(plan)
        assert torch.equal(implied(plan), token_mask(plan))


@MANY
@given(st.data())
def test_union_and_intersection_are_those_of_the_pairs(data):
    a = data.draw(plans())
    b = data.draw(plans(a.q, a.k, st.just("bits" if isinstance(a.mask, Bits) else a.mask), groups=data.draw(st.sampled_from([1, a.groups]))))
    both, either = intersect(a, b), union(a, b)
    check_blocks(both)
    check_blocks(either)
    assert torch.equal(token_mask(either), token_mask(a) | token_mask(b))
    rescued = rescued_rows(a, b)
    assert torch.equal(token_mask(both)[:, ~rescued], (token_mask(a) & token_mask(b))[:, ~rescued])


def rescued_rows(a: BlockPlan, b: BlockPlan) -> torch.Tensor:
    """bool [Nq]: tokens in rows of blocks that an intersection leaves empty in some group."""
    left = (torch.minimum(a.kinds(), b.kinds()) != EMPTY).any(-1)
    return (~left).any(0)[a.q.inverse.long() // a.q.block]


@MANY
@given(plans())
def test_a_complement_is_the_rest(plan):
    rest = complement(plan)
    check_blocks(rest)
    assert torch.equal(token_mask(rest), ~token_mask(plan))
    whole = union(plan, rest)
    check_blocks(whole)
    assert token_mask(whole).all()
    assert torch.equal(token_mask(complement(rest)), token_mask(plan))


@SOME
@given(st.data())
def test_forced_blocks_are_read_whole_and_nothing_else_changes(data):
    plan = data.draw(plans())
    rows = torch.arange(plan.q.blocks) == data.draw(st.integers(0, plan.q.blocks - 1))
    columns = torch.arange(plan.k.blocks) == data.draw(st.integers(0, plan.k.blocks - 1))
    forced = force(plan, rows=rows, columns=columns, diagonal=True)
    check_blocks(forced)
    home = plan.q.inverse.long() // plan.q.block
    want = rows[home][:, None] | columns[home][None, :] | (home[:, None] == home[None, :])
    assert torch.equal(token_mask(forced), token_mask(plan) | want)


@SOME
@given(plans(tests=st.sampled_from([Window(2.5), Band(2), Frames(0, 1, inverted=True), "bits", None])))
def test_bits_say_the_same_as_the_test_they_were_made_of(plan):
    if plan.k.block % 32:
        wide = by_frame(plan.q.tokens, 32, plan.q.grid or (1, 1, 1), 0)
        plan = from_bool(
            torch.zeros(1, wide.blocks, wide.blocks, dtype=torch.bool), wide, wide, partial=torch.ones(1, wide.blocks, wide.blocks, dtype=torch.bool), test=plan.mask or Band(1)
        )
    written = to_bits(plan)
    check_blocks(written)
    assert torch.equal(token_mask(written), token_mask(plan))


@SOME
@given(st.data())
def test_coarser_blocks_cover_and_finer_ones_are_the_same_where_they_nest(data):
    grid, start, after = (2, data.draw(st.integers(1, 4)), 4), data.draw(st.integers(0, 3)), data.draw(st.integers(0, 9))
    tokens = start + math.prod(grid) + after
    fine, coarse = by_frame(tokens, 4, grid, start), by_frame(tokens, 8, grid, start)
    tests = st.sampled_from([None, Window(1.5), Band(2)])
    small = data.draw(plans(fine, tests=tests))
    large = coarsen(small, coarse, coarse)
    check_blocks(large)
    assert bool((token_mask(large) | ~token_mask(small)).all())
    kinds, home = small.kinds(), fine.inverse.long() // 4
    for row in range(coarse.blocks):
        for column in range(coarse.blocks):
            rows, columns = (home[[int(t) for t in coarse.perm.view(-1, 8)[b] if t >= 0]].unique() for b in (row, column))
            assert torch.equal(large.kinds()[:, row, column], kinds[:, rows][:, :, columns].amax((1, 2)))
    again = refine(large, fine, fine)
    check_blocks(again)
    assert torch.equal(token_mask(again), token_mask(large))


def test_sparse_merged_with_its_complement_is_dense():
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 60, 32, generator=g)
    order = by_frame(60, 8, (3, 3, 5), 2)
    mask, partial = torch.rand(2, 2, 8, 8, generator=g)[:, :, : order.blocks, : order.blocks] < 0.3
    assert order.blocks == 8
    plan = from_bool(mask[None], order, order, partial=partial[None], test=Window(2.5))
    part = attend(q, k, v, AttentionPlan(blocks=plan), backend="chunked", return_lse=True)
    rest = attend(q, k, v, AttentionPlan(blocks=complement(plan)), backend="chunked", return_lse=True)
    o, lse = merge(*part, *rest)
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert (o - want).abs().max() < 2e-6
    assert (lse - torch.logsumexp(q.double() @ k.double().mT * 32**-0.5, -1)).abs().max() < 2e-6


# --- what cannot be combined ---------------------------------------------------------------------------------------------


def window_plan(test=None, block=4):
    order = by_frame(14, block, (1, 3, 4), 1)
    every = torch.ones(1, order.blocks, order.blocks, dtype=torch.bool)
    return from_bool(~every, order, order, partial=every, test=test or Window(2.5))


def test_plans_that_cannot_be_combined_say_why():
    a = window_plan()
    with pytest.raises(ValueError, match=r"test their partial blocks differently \(Window\(radius=2.5.*Band\(half_width=1.*to_bits"):
        union(a, window_plan(Band(1)))
    with pytest.raises(ValueError, match="order the tokens of q differently"):
        union(a, window_plan(block=8))
    with pytest.raises(ValueError, match="tail 'off' and 'row'"):
        union(a, dataclasses.replace(a, tail="row"))
    with pytest.raises(ValueError, match="no diagonal in 4 x 2 blocks"):
        force(from_bool(torch.ones(4, 2, dtype=torch.bool), a.q, raster(8, 4)), diagonal=True)
    with pytest.raises(ValueError, match="other tokens or another grid"):
        coarsen(a, raster(14, 8), raster(14, 8))
    opposite = force(complement(a), rows=torch.tensor([True, False, False, False]))
    part = from_bool(torch.zeros(1, 4, 4, dtype=torch.bool), a.q, a.k, partial=torch.eye(4, dtype=torch.bool)[None], test=Window(2.5))
    with pytest.raises(ValueError, match="differently"):
        union(part, opposite)


def test_different_tests_combine_as_bits():
    a, b = window_plan(block=32), window_plan(Band(1), block=32)
    assert torch.equal(token_mask(union(to_bits(a), to_bits(b))), token_mask(a) | token_mask(b))
    assert torch.equal(token_mask(intersect(to_bits(a), to_bits(complement(b)))), token_mask(a) & ~token_mask(b))


# --- the bit store -------------------------------------------------------------------------------------------------------


@SOME
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_packing_loses_nothing(columns, seed):
    mask = torch.rand(2, 3, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(mask)
    assert packed.shape == (2, 3, -(-columns // 8))
    assert torch.equal(unpack(packed, columns), mask)


def test_unpacking_the_wrong_width_says_so():
    with pytest.raises(ValueError, match="2 bytes a row do not hold 17 columns; expected 3"):
        unpack(torch.zeros(4, 2, dtype=torch.uint8), 17)


def test_equal_pair_masks_are_stored_once():
    pairs = torch.rand(6, 32, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    pairs[3] = pairs[0]
    pairs[5] = pairs[1]
    words, ids = pack_bits(pairs)
    assert words.shape == (4, 32, 2)
    bit = (words[ids.long()][..., None] >> torch.arange(32)) & 1
    assert torch.equal(bit.flatten(-2) != 0, pairs)


# --- the check itself ----------------------------------------------------------------------------------------------------


def broken(plan: BlockPlan, **lists) -> BlockPlan:
    return dataclasses.replace(plan, full=dataclasses.replace(plan.full, **lists))


def edited(x: torch.Tensor, index, value) -> torch.Tensor:
    x = x.clone()
    x[index] = value
    return x


def test_each_breach_is_named_with_its_place():
    order = by_frame(14, 4, (1, 3, 4), 1)
    every = torch.ones(2, 4, 4, dtype=torch.bool)
    plan = from_bool(every, order, order)
    col, ptr = plan.full.col, plan.full.ptr
    check_blocks(plan)
    breaches = [
        (broken(plan, col=edited(col, 5, 9)), "I1: a column of the full list is outside 0 to 3, group 0, row 1"),
        (broken(plan, col=edited(col, 22, 1)), "I1: the columns of the full list do not rise, group 1, row 1"),
        (dataclasses.replace(plan, partial=plan.full, mask=Band(1)), "I1: block 0 is in both lists, group 0, row 0"),
        (broken(plan, ptr=edited(ptr, (0, 2), 3)), "I2: ptr falls in the full list, group 0, row 1"),
        (broken(plan, ptr=ptr + 1), "I2: ptr of group 0 of the full list does not go on"),
        (broken(plan, col=col[:-1]), "I2: the full list has 32 entries and room for 31"),
        (broken(plan, ptr=ptr[:, :-1]), r"I2: ptr of the full list has shape \[2, 4\]; expected \[2, 5\]"),
        (dataclasses.replace(plan, q=dataclasses.replace(order, perm=edited(order.perm, 0, 2))), "I4: the live places of q do not hold each of the 14 tokens once"),
        (dataclasses.replace(plan, k=dataclasses.replace(order, inverse=edited(order.inverse, 3, 1))), r"I4: inverse\[perm\[i\]\] of k is not i at place 2"),
        (dataclasses.replace(plan, k=dataclasses.replace(order, valid=edited(order.valid, 3, 1))), "I4: the live places of block 3 of k are not the first 1"),
        (dataclasses.replace(plan, head_map=plan.head_map + 1), "groups outside 0 to 1"),
    ]
    for wrong, sentence in breaches:
        with pytest.raises(ValueError, match=sentence):
            check_blocks(wrong)


def test_an_empty_row_is_a_breach_of_a_plan_that_stands_in_for_dense_attention():
    plan = complement(from_bool(torch.eye(4, dtype=torch.bool) | (torch.arange(4)[:, None] == 2), raster(14, 4), raster(14, 4)))
    check_blocks(plan)
    with pytest.raises(ValueError, match="I3: no key is read, group 0, row 2"):
        check_blocks(dataclasses.replace(plan, approximate=True))


def test_a_wrong_density_is_a_breach():
    class Boasting(BlockPlan):
        def density(self):
            return super().density() / 2

    plan = from_bool(torch.ones(4, 4, dtype=torch.bool), raster(14, 4), raster(14, 4))
    with pytest.raises(ValueError, match="I7: the density reported is 0.500000, the lists make 1.000000"):
        check_blocks(Boasting(**{f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}))


def test_orders_are_made_once_and_cannot_be_changed():
    order = by_frame(14, 4, (1, 3, 4), 1)
    assert by_frame(14, 4, (1, 3, 4), 1) is order
    assert raster(14, 4) is raster(14, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        order.block = 8
    before = [getattr(order, f.name) for f in dataclasses.fields(order)]
    versions = [x._version for x in before if isinstance(x, torch.Tensor)]
    plan = force(window_plan(), diagonal=True)
    union(plan, complement(plan)), to_bits(window_plan(block=32)), plan.kinds(), plan.density()
    assert [x._version for x in before if isinstance(x, torch.Tensor)] == versions


def test_kinds_of_a_union_are_the_stronger_ones():
    a = window_plan()
    b = force(a, diagonal=True)
    assert torch.equal(union(a, b).kinds(), torch.where(torch.eye(4, dtype=torch.bool), FULL, PARTIAL)[None].to(torch.uint8))


# --- bits follow their blocks --------------------------------------------------------------------------------------------


def bit_plan(whole: torch.Tensor, groups: int = 2, seed: int = 0) -> tuple[BlockPlan, torch.Tensor]:
    """(a plan whose blocks all have bits of their own but for ``whole`` [3, 3] ones, the pairs bool [G, 96, 96])."""
    order, g = raster(96, 32), torch.Generator().manual_seed(seed)
    pairs = torch.rand(groups, 3, 3, 32, 32, generator=g) < 0.5
    test = Bits(*pack_bits(pairs.flatten(0, 2)))
    every = torch.ones(groups, 3, 3, dtype=torch.bool)
    plan = from_bool(whole.expand(groups, 3, 3), order, order, partial=every, test=test)
    return plan, (pairs | whole[..., None, None]).transpose(2, 3).reshape(groups, 96, 96)


NONE, DIAGONAL = torch.zeros(3, 3, dtype=torch.bool), torch.eye(3, dtype=torch.bool)


def test_bits_stay_with_their_blocks():
    plan, pairs = bit_plan(NONE)
    assert torch.equal(implied(plan), pairs)
    some, with_diagonal = bit_plan(DIAGONAL)
    assert torch.equal(implied(some), with_diagonal)
    assert torch.equal(implied(force(plan, diagonal=True)), with_diagonal)
    without = from_bool(~DIAGONAL, plan.q, plan.k)
    assert torch.equal(implied(intersect(plan, without)), pairs & token_mask(without))
    assert torch.equal(implied(intersect(without, plan)), pairs & token_mask(without))


def test_plans_with_different_groups_of_heads_combine_per_head():
    a, pairs_a = bit_plan(NONE, groups=2)
    b, pairs_b = bit_plan(DIAGONAL, groups=3, seed=1)
    a = dataclasses.replace(a, head_map=torch.tensor([[1, 0, 1, 1]]))
    b = dataclasses.replace(b, head_map=torch.tensor([[2, 0, 1, 2], [0, 0, 0, 1]]))
    either = union(a, b)
    check_blocks(either)
    heads = either.head_map.long()
    assert torch.equal(implied(either)[heads], pairs_a[a.head_map] | pairs_b[b.head_map])
    one = from_bool(DIAGONAL, a.q, a.k)
    assert torch.equal(implied(union(one, a)), token_mask(one) | pairs_a)
    assert torch.equal(union(one, a).head_map, a.head_map)


def test_entries_past_the_end_of_a_list_are_nobodys():
    plan, pairs = bit_plan(DIAGONAL)
    assert isinstance(plan.mask, Bits)
    full, partial = (dataclasses.replace(x, col=torch.cat([x.col, torch.tensor([1, 0, 2], dtype=x.col.dtype)])) for x in (plan.full, plan.partial))
    ids = torch.cat([plan.mask.ids, torch.tensor([0, 1, 2], dtype=torch.int32)])
    roomy = dataclasses.replace(plan, full=full, partial=partial, mask=Bits(plan.mask.words, ids))
    check_blocks(roomy)
    assert torch.equal(implied(roomy), pairs)
    assert torch.equal(implied(complement(roomy)), ~pairs)
    assert torch.equal(implied(to_bits(complement(roomy))), ~pairs)
    assert torch.equal(implied(union(roomy, plan)), pairs)
