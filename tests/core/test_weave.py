"""The merge rules of every stage: what two methods may ask of one call together, and the sentence when they may not."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from attention_loom.core.call import AttentionCall, Block, Span, TokenLayout
from attention_loom.core.errors import ConflictError
from attention_loom.core.methods.base import Method
from attention_loom.core.parted import parted
from attention_loom.core.schedule import BlockSelection
from attention_loom.core.weave import Draft, weave
from attention_loom.kernels.plan import MASKED, DistanceTable, ExtraKV, FrameTable, HeadMix, Labels, Modulation, Probe, Rotation, RowEdit

GRID = (3, 1, 2)
VIDEO = TokenLayout((Span("video", 6, GRID),))


def a_call(**changes):
    facts = dict(
        family="Wan", block=Block("block", 0, 0, 2), kind="self", heads=2, width=8, q=VIDEO, k=VIDEO, sigma=1.0, progress=0.0,
        rows=(0,), batch=1, device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    return AttentionCall(**facts | changes)


def draft():
    return Draft(a_call())


def rotation(tokens, angle=1.0, pairing="interleaved"):
    delta = torch.zeros(6, 1)
    delta[tokens] = angle
    freqs = torch.zeros(1, 1, 4)
    freqs[0, 0, 0] = 0.5
    return Rotation(delta, delta, freqs, pairing)


def frames(classes, factors, ids=None):
    ids = VIDEO.frame_ids(torch.device("cpu")) if ids is None else ids
    return FrameTable(ids, ids, torch.tensor(classes, dtype=torch.uint8), torch.tensor(factors))


def test_nothing_asked_is_an_empty_plan():
    plan = draft().plan()
    assert plan.empty
    assert plan.features == frozenset()


# --- rotation -------------------------------------------------------------------------------------------------------


def test_rotations_of_different_tokens_add_up():
    d = draft()
    d.rotate("A", rotation([0, 1]))
    d.rotate("B", rotation([4], angle=3.0))
    merged = d.plan().rotation
    angles = torch.einsum("na,ahc->hnc", merged.delta_q, merged.freqs)[0, :, 0]
    assert angles.tolist() == [0.5, 0.5, 0, 0, 1.5, 0]


def test_one_token_moved_twice_is_a_conflict():
    d = draft()
    d.rotate("A", rotation([0, 1]))
    d.rotate("B", rotation([1, 2]))
    with pytest.raises(ConflictError, match=r"A and B .* move the position of 1 tokens"):
        d.plan()


def test_rotations_pair_channels_alike():
    d = draft()
    d.rotate("A", rotation([0]))
    d.rotate("B", rotation([1], pairing="halves"))
    with pytest.raises(ConflictError, match="pair rotary channels"):
        d.plan()


# --- modulation -----------------------------------------------------------------------------------------------------


def test_factors_multiply_and_masked_wins():
    d = draft()
    d.modulate("A", Modulation(frames=frames([[0, 1, MASKED]] * 3, [1.0, 0.5]), positive_only=True))
    d.modulate("B", Modulation(frames=frames([[0, 1, 1], [1, MASKED, 0], [0, 0, 1]], [1.0, 0.8]), positive_only=True))
    table = d.plan().modulation.frames
    value = torch.where(table.classes == MASKED, torch.tensor(-1.0), table.factors[table.classes.long().clamp(max=len(table.factors) - 1)])
    assert torch.allclose(value, torch.tensor([[1.0, 0.4, -1], [0.8, -1, -1], [1.0, 0.5, -1]]))


def test_frame_and_distance_tables_stand_side_by_side():
    pos = VIDEO.positions(torch.device("cpu"))
    d = draft()
    d.modulate("A", Modulation(frames=frames([[0] * 3] * 3, [1.0]), positive_only=True))
    d.modulate("B", Modulation(distance=DistanceTable(pos, pos, torch.zeros(6, dtype=torch.uint8), torch.ones(1)), positive_only=True))
    merged = d.plan().modulation
    assert merged.frames is not None
    assert merged.distance is not None


def test_signed_and_plain_factors_do_not_mix():
    d = draft()
    d.modulate("Longer", Modulation(frames=frames([[0] * 3] * 3, [1.0]), positive_only=True))
    d.modulate("Entropy", Modulation(scale=torch.tensor([1.2])))
    with pytest.raises(ConflictError, match="Longer scales only positive logits and Entropy scales all"):
        d.plan()


def test_centred_and_uncentred_do_not_mix():
    d = draft()
    d.modulate("A", Modulation(frames=frames([[0] * 3] * 3, [1.0]), center_keys=True))
    d.modulate("B", Modulation(frames=frames([[0] * 3] * 3, [1.0])))
    with pytest.raises(ConflictError, match="centres the keys"):
        d.plan()


def test_other_frame_numbers_are_a_conflict():
    d = draft()
    d.modulate("A", Modulation(frames=frames([[0] * 3] * 3, [1.0])))
    d.modulate("B", Modulation(frames=frames([[0] * 3] * 3, [1.0], ids=torch.tensor([0, 0, 0, 1, 1, 2], dtype=torch.int16))))
    with pytest.raises(ConflictError, match="number the frames"):
        d.plan()


def test_too_many_factor_classes():
    d = draft()
    d.modulate("A", Modulation(frames=frames([[0] * 3] * 3, [1.0] * 20)))
    d.modulate("B", Modulation(frames=frames([[0] * 3] * 3, [1.0] * 20)))
    with pytest.raises(ConflictError, match="400 factor classes"):
        d.plan()


def test_plain_factors_multiply():
    d = draft()
    d.modulate("A", Modulation(scale=torch.tensor([1.5])))
    d.modulate("B", Modulation(scale=torch.tensor([2.0, 0.5])))
    assert d.plan().modulation.scale.tolist() == [3.0, 0.75]


# --- bias, labels, segments -----------------------------------------------------------------------------------------


def test_key_biases_add():
    d = draft()
    d.bias("A", torch.zeros(1, 1, 6) + 1)
    d.bias("B", torch.arange(6.0).view(1, 1, 6).expand(2, 1, 6))
    assert d.plan().key_bias.tolist() == [[[1, 2, 3, 4, 5, 6]]] * 2


def admitted(labels):
    return ((labels.allow_q[..., :, None] >> labels.label_k[..., None, :].long()) & 1).bool()


def test_labels_intersect():
    left = Labels(torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int8), torch.tensor([[0b01, 0b01, 0b11, 0b11, 0b10, 0b10]]), 2)
    even = Labels(torch.tensor([[0, 1, 0, 1, 0, 1]], dtype=torch.int8), torch.tensor([[0b11, 0b10, 0b11, 0b10, 0b01, 0b11]]), 2)
    d = draft()
    d.admit("A", left)
    d.admit("B", even)
    assert torch.equal(admitted(d.plan().labels), admitted(left) & admitted(even))


def test_a_query_that_may_see_nothing_is_a_conflict():
    d = draft()
    d.admit("Left", Labels(torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int8), torch.full((1, 6), 0b01), 2))
    d.admit("Right", Labels(torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int8), torch.full((1, 6), 0b10), 2))
    with pytest.raises(ConflictError, match=r"Left and Right .* 6 tokens would be allowed to see nothing"):
        d.plan()


def test_too_many_kinds_of_token():
    d = draft()
    for name in "AB":
        d.admit(name, Labels(torch.zeros(1, 6, dtype=torch.int8), torch.ones(1, 6, dtype=torch.int64), 9))
    with pytest.raises(ConflictError, match="81 kinds of token"):
        d.plan()


def test_segments_are_concatenated():
    d = draft()
    for name in "AB":
        d.extend(name, ExtraKV(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)))
    assert len(d.plan().extra_kv) == 2


# --- head mix, probes, edits ----------------------------------------------------------------------------------------


def test_one_writer_per_head():
    d = draft()
    d.mix("A", HeadMix(torch.tensor([1.0, 0.0]), "identity"))
    d.mix("B", HeadMix(torch.tensor([0.0, 0.5]), "mean"))
    assert len(d.plan().head_mix) == 2
    d.mix("C", HeadMix(torch.tensor([0.0, 0.1]), "mean"))
    with pytest.raises(ConflictError, match="B and C .* head 1"):
        d.plan()


def test_probes_are_united_and_keep_their_owner():
    d = draft()
    d.probe("A", Probe("map", "columns", torch.tensor([0])))
    d.probe("B", Probe("map", "entropy"))
    assert [p.name for p in d.plan().probes] == ["A/map", "B/map"]


def test_one_writer_per_row():
    d = draft()
    d.edit("A", RowEdit(torch.tensor([0, 1]), 1.0, copy_from=torch.tensor([2, 3])))
    d.edit("B", RowEdit(torch.tensor([4]), 0.5, copy_from=torch.tensor([2])))
    assert len(d.plan().row_edits) == 2
    d.edit("C", RowEdit(torch.tensor([1]), 0.5, copy_from=torch.tensor([2])))
    with pytest.raises(ConflictError, match="A and C .* same output tokens"):
        d.plan()


def test_backend_choices():
    d = draft()
    assert d.backend() == "auto"
    d.prefer("A", "auto")
    d.prefer("B", "triton")
    d.prefer("C", "triton")
    assert d.backend() == "triton"
    d.prefer("D", "chunked")
    with pytest.raises(ConflictError, match="B and D .* 'triton'"):
        d.backend()


# --- beside the plan ------------------------------------------------------------------------------------------------


def test_one_method_takes_other_keys():
    k, v = torch.zeros(2, 1, 2, 6, 8)
    d = draft()
    assert d.replaced() is None and d.beside == ()
    d.swap("A", k, v)
    assert d.replaced() == (k, v) and d.plan().empty and d.owners == ("A",) and d.beside == ("replaced_kv",)
    d.extend("A", ExtraKV(k, v))
    assert d.replaced() == (k, v), "its own segments are its business"
    d.extend("B", ExtraKV(k, v))
    with pytest.raises(ConflictError, match="A and B .* in the place of those the other adds to"):
        d.replaced()
    two = draft()
    two.swap("A", k, v), two.swap("B", k, v)
    with pytest.raises(ConflictError, match="A and B"):
        two.replaced()


def test_a_sparse_pattern_rests_where_keys_are_anothers():
    d = draft()
    d.sparsify("Pattern", object())
    d.swap("A", *torch.zeros(2, 1, 2, 6, 8))
    assert d.plan().blocks is None and d.owners == ("A",)
    assert d.reasons == ["Pattern: A reads another picture's keys here, so it stays dense"]


def test_one_method_reworks_the_result():
    d, out = draft(), torch.ones(1, 2, 6, 8)
    assert d.reworked(out) is out
    d.rework("A", lambda x: 2 * x)
    assert torch.equal(d.reworked(out), 2 * out) and d.plan().empty and d.beside == ("reworked",) and d.owners == ("A",)
    d.rework("B", lambda x: x)
    with pytest.raises(ConflictError, match="A and B .* both write the whole result"):
        d.reworked(out)


def test_a_batch_in_parts_has_no_method_over_all_of_it():
    for ask in (lambda d: d.swap("A", *torch.zeros(2, 1, 2, 6, 8)), lambda d: d.rework("A", lambda x: x), lambda d: d.result("A", lambda x: None)):
        d = draft()
        d.part((0,)).bias("B", torch.zeros(1, 1, 6))
        ask(d)
        with pytest.raises(ConflictError, match="B and A .* the attention of the whole batch"):
            parted(d)


# --- weave ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bias(Method):
    owner: ClassVar[str] = "Bias"
    amount: float = 1.0

    def contribute(self, call, draft):
        draft.bias(f"{self.owner} {self.amount:g}", torch.full((1, 1, call.k.length), self.amount))


def test_order_of_nodes_does_not_matter():
    methods = [Bias(amount=a) for a in (0.1, 0.2, 0.7)]
    plans = [weave(order, a_call(), lambda m: True).plan() for order in (methods, methods[::-1], [methods[1], methods[0], methods[2]])]
    assert all(torch.equal(p.key_bias, plans[0].key_bias) for p in plans)


def test_inactive_and_unwanted_methods_leave_no_trace():
    here = Bias(blocks=BlockSelection.parse("0"))
    elsewhere = Bias(amount=5, blocks=BlockSelection.parse("1"))
    found = weave([here, elsewhere], a_call(), lambda m: True)
    assert found.owners == ("Bias 1",)
    assert weave([here], a_call(), lambda m: False).plan().empty
