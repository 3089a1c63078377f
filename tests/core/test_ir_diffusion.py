"""IR-Diffusion in one attention call: against fp64 softmax over the written-out mask, subject by subject."""

from dataclasses import replace

import pytest
import torch
from attention_loom.core.call import Span, TokenLayout
from attention_loom.core.concepts import Concept
from attention_loom.core.draws import Draws
from attention_loom.core.errors import ConflictError, LoomError
from attention_loom.core.isolation import isolated
from attention_loom.core.parted import parted
from attention_loom.core.places import apart_on_grid, on_grid
from attention_loom.core.weave import Draft
from attention_loom.kernels import attend
from attention_loom.kernels.plan import Labels, Probe
from ir_scene import IMAGE, PLANE, REFERENCES, SCENE, WORDS, D, H, X, Y, box, call_of, method, slow_reposition, softmax, tensors


def draft_of(m, call):
    draft = Draft(call)
    assert m.wants(call)
    m.contribute(call, draft)
    return draft


def run(m, call):
    draft, seen = draft_of(m, call), call.seen
    if not draft.parts:
        return attend(seen.q, seen.k, seen.v, draft.plan(), dense=softmax)
    out = torch.full_like(seen.q, float("nan"))
    for elements, part in parted(draft):
        e = list(elements)
        out[e] = attend(seen.q[e], seen.k[e], seen.v[e], part.plan(), dense=softmax)
    return out


def by_hand(q, k, v, target, references, text=0, isolation=True, reading=True):
    """The scene's row by the written-out rule, without a rotary plane."""
    scene, own = apart_on_grid(SCENE[0], Y, X).flatten(1), on_grid(REFERENCES, Y, X)
    n, keys, values, allowed = text + Y * X, [], [], []
    inside = torch.zeros(2, n, dtype=torch.bool)
    inside[:, text:] = scene
    for i in range(2) if reading else ():
        source = torch.tensor([s for s, _, _ in slow_reposition(own[i], scene[i].view(Y, X))]) + text
        keys.append(k[references[i]][:, source])
        values.append(v[references[i]][:, source])
        allowed.append(inside[i][:, None].expand(-1, len(source)))
    apart = (inside[0][:, None] & inside[1][None]) | (inside[1][:, None] & inside[0][None])
    mask = torch.cat([*allowed, ~apart if isolation else torch.ones(n, n, dtype=torch.bool)], 1)
    return softmax(q[target], torch.cat([*keys, k[target]], 1), torch.cat([*values, v[target]], 1), mask)


@pytest.mark.parametrize("text", [0, 5])
@pytest.mark.parametrize("rows", [(0,), (1, 0)])
@pytest.mark.parametrize(("isolation", "reading"), [(True, "reposition"), (True, "off"), (False, "reposition")])
def test_the_scene_follows_the_rule_and_the_references_are_stock(text, rows, isolation, reading):
    qkv = tensors(4 * len(rows), text + Y * X)  # two references and two scenes in each chunk
    call = call_of("joint" if text else "self", qkv, rows, text)
    got, stock = run(method(isolation=isolation, reading=reading), call), softmax(*qkv)
    for first in range(0, 4 * len(rows), 4):
        assert torch.equal(got[first : first + 2], stock[first : first + 2])
        for target in (first + 2, first + 3):
            want = by_hand(*qkv, target, (first, first + 1), text, isolation, reading != "off")
            assert torch.allclose(got[target], want, atol=1e-5)
            assert not torch.allclose(got[target], stock[target], atol=1e-3)


def test_no_subject_gives_another_anything():
    """Values of one subject's tokens may be anything: the other's output stays."""
    q, k, v = tensors(3, Y * X)
    masks = apart_on_grid(SCENE[0], Y, X).flatten(1)
    other = v.clone()
    other[2][:, masks[1]] += 1e6
    a, b = (run(method(reading="off"), call_of("self", (q, k, x))) for x in (v, other))
    assert torch.equal(a[2][:, masks[0]], b[2][:, masks[0]])
    background = ~masks.any(0)
    assert torch.allclose(a[2][:, background], softmax(q, k, v)[2][:, background], atol=1e-6), "background sees everything"


def test_early_layers_and_other_steps_only_isolate():
    qkv = tensors(3, Y * X)
    early, late = (draft_of(method(), call_of("self", qkv, ordinal=n)) for n in (2, 3))
    assert [bool(next(iter(d.parts.values())).segments) for d in (early, late)] == [False, True], "SD3 reads from layer 12 of 38 on"
    m = method(start_layer=5, read_from=0.2, read_to=0.5)
    for ordinal, progress, reads in ((5, 0.3, True), (4, 0.3, False), (5, 0.1, False), (5, 0.5, False)):
        assert bool(next(iter(draft_of(m, call_of("self", qkv, ordinal=ordinal, progress=progress)).parts.values())).segments) == reads
    alone = draft_of(method(scene=SCENE[:, :1], references=REFERENCES[:1]), call_of("self", tensors(2, Y * X), ordinal=0))
    assert not alone.parts and "reads no reference" in alone.reasons[0], "one subject has nobody to be isolated from"


def test_the_order_of_a_references_tokens_plays_no_part_without_positions():
    q, k, v = tensors(3, Y * X)
    part = next(iter(draft_of(method(), call_of("self", (q, k, v))).parts.values()))
    plan = part.plan()
    order = torch.randperm(plan.extra_kv[0].k.shape[2], generator=torch.Generator().manual_seed(1))
    turned = replace(plan, extra_kv=(replace(plan.extra_kv[0], k=plan.extra_kv[0].k[:, :, order], v=plan.extra_kv[0].v[:, :, order]), *plan.extra_kv[1:]))
    a, b = (attend(q[2:], k[2:], v[2:], p) for p in (plan, turned))
    assert (a - b).abs().max() < 1e-6


def test_a_reference_that_is_the_scene_itself_changes_nothing():
    q, k, v = tensors(1, Y * X)
    whole = torch.ones(1, 32, 48)
    m = method(scene=whole[None], references=whole)
    both = tuple(x.repeat(2, 1, 1, 1) for x in (q, k, v))
    assert (run(m, call_of("self", both)) - softmax(*both)).abs().max() < 1e-6, "every key twice is the same average"


def test_rotary_keys_stand_where_their_tokens_went():
    """Against keys that the model would have made at the new place: raw keys turned by their positions."""
    q, k, v = tensors(3, Y * X)
    rows = torch.cartesian_prod(torch.arange(Y), torch.arange(X)).double()

    def turned(x, places):
        angle = places @ PLANE.freqs[:, 0]
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1).flatten(-2)

    qkv = (turned(q, rows), turned(k, rows), v)
    segments = next(iter(draft_of(method(), call_of("self", qkv, plane=PLANE)).parts.values())).segments
    scene, own = apart_on_grid(SCENE[0], Y, X), on_grid(REFERENCES, Y, X)
    for i, (_, segment) in enumerate(segments):
        moves = slow_reposition(own[i], scene[i])
        source = torch.tensor([s for s, _, _ in moves])
        want = turned(k[i][:, source], rows[source] + torch.tensor([m[1:] for m in moves]).double())
        assert (segment.k[0] - want).abs().max() < 1e-5 and (segment.k[0] - qkv[1][i][:, source]).abs().max() > 0.1
    still = next(iter(draft_of(method(reading="in place"), call_of("self", qkv, plane=PLANE)).parts.values())).segments
    assert torch.equal(still[0][1].k[0], qkv[1][0][:, own[0].flatten()]), "what is not moved keeps its bits"


def test_in_a_unet_a_move_alone_changes_nothing_and_a_resize_does():
    """No positions: a reference of the same size elsewhere gives the same keys in the same order."""
    q, k, v = tensors(2, Y * X)
    place, size = box(0, 0.5, 0, 0.5), (box(0.5, 1, 0.5, 1), box(0, 1, 0, 0.34))
    for reference, same in zip(size, (True, False), strict=True):
        moved, still = (method(scene=place[None, None], references=reference[None], reading=reading) for reading in ("reposition", "in place"))
        a, b = (run(m, call_of("self", (q, k, v))) for m in (moved, still))
        assert torch.equal(a, b) == same
        turned = (run(m, call_of("self", (q, k, v), plane=PLANE)) for m in (moved, still))
        assert not torch.allclose(*turned, atol=1e-4), "where positions turn keys, both do"


def test_equal_masks_gather_the_references_own_keys():
    q, k, v = tensors(3, Y * X)
    segments = next(iter(draft_of(method(references=SCENE[0]), call_of("self", (q, k, v), plane=PLANE)).parts.values())).segments
    for i, (mask, (_, segment)) in enumerate(zip(apart_on_grid(SCENE[0], Y, X).flatten(1), segments, strict=True)):
        assert torch.equal(segment.k[0], k[i][:, mask]) and torch.equal(segment.v[0], v[i][:, mask])


def test_no_weight_goes_from_one_subject_to_another():
    """Values that say whose token they are: what arrives is the share of attention, exactly."""
    q, k, _ = tensors(3, Y * X)
    masks = apart_on_grid(SCENE[0], Y, X).flatten(1)
    v = torch.zeros(3, H, Y * X, D, dtype=torch.float64)
    for i in range(2):
        v[2, :, masks[i], i] = 1.0
    got = run(method(reading="off"), call_of("self", (q, k, v)))[2]
    for i, j in ((0, 1), (1, 0)):
        assert not got[:, masks[i], j].any() and (got[:, masks[i], i] > 0).all()


@pytest.mark.parametrize("rows", [(0,), (0, 1)])
def test_words_of_a_subject_are_hidden_from_the_others(rows):
    qkv = tensors(3 * len(rows), 6 + Y * X)
    call = call_of("joint", qkv, rows, 6)
    got, open_ = (run(method(reading="off", words=words), call) for words in (WORDS, None))
    masks = torch.zeros(2, 6 + Y * X, dtype=torch.bool)
    masks[:, 6:] = apart_on_grid(SCENE[0], Y, X).flatten(1)
    words = torch.zeros(2, 6 + Y * X, dtype=torch.bool)
    words[0, [1, 2]], words[1, 4] = True, True
    apart = (masks[0][:, None] & (masks[1] | words[1])[None]) | (masks[1][:, None] & (masks[0] | words[0])[None])
    q, k, v = qkv
    assert torch.allclose(got[2], softmax(q[2], k[2], v[2], ~apart), atol=1e-5) and not torch.allclose(got[2], open_[2], atol=1e-4)
    assert torch.equal(got[:2], open_[:2])
    if len(rows) == 2:
        assert torch.equal(got[3:], open_[3:]), "the negative prompt has no such words"


def test_words_of_a_prompt_whose_template_is_dropped():
    layout = TokenLayout((Span("text", 4), IMAGE))
    masks = apart_on_grid(SCENE[0], Y, X)
    labels = isolated(masks, layout, replace(WORDS, concepts=(Concept("a", (3, 4), ()), Concept("c", (5,), ()))))
    assert labels.label_k[0, :4].tolist() == [0, 3, 3, 4] and labels.count == 5
    assert labels.allow_q[0, :4].tolist() == [31] * 4, "text sees everything"
    assert {int(labels.allow_q[0, 4 + int(m.flatten().nonzero()[0])]) for m in masks} == {0b01011, 0b10101}
    with pytest.raises(LoomError, match="a prompt of 6 tokens and the model reads 4"):
        isolated(masks, layout, WORDS)


def test_a_reference_too_narrow_for_a_layer_may_be_left_out_of_it():
    thin = torch.stack([box(0, 1, 0, 0.17), REFERENCES[1]])
    call = call_of("self", tensors(3, Y * X))
    with pytest.raises(LoomError, match="the reference mask of subject 1 is 1 x 4 tokens"):
        draft_of(method(references=thin), call)
    segments = next(iter(draft_of(method(references=thin, allow_missing=True), call).parts.values())).segments
    both = next(iter(draft_of(method(), call).parts.values())).segments
    assert len(segments) == 1 and torch.equal(segments[0][1].k, both[1][1].k), "the other is read as ever"


def test_strength_and_bias_weigh_the_references():
    q, k, v = tensors(3, Y * X)
    half = run(method(strength=0.5, isolation=False), call_of("self", (q, k, v)))
    same = run(method(bias=-0.6931471805599453, isolation=False), call_of("self", (q, k, v)))
    assert torch.allclose(half, same, atol=1e-6) and not torch.allclose(half, run(method(isolation=False), call_of("self", (q, k, v))), atol=1e-3)


def test_dropped_tokens_do_not_read_and_every_step_draws_anew():
    qkv = tensors(3, Y * X)
    m = method(dropout=0.5, seed=3)

    def rows(**more):
        return torch.stack([s.rows for _, s in next(iter(draft_of(more.pop("m", m), call_of("self", qkv, **more)).parts.values())).segments])

    first = rows()
    masks = apart_on_grid(SCENE[0], Y, X).flatten(1)
    assert torch.equal(first, rows()) and torch.equal(first, rows(ordinal=9)), "all layers of a step draw the same"
    assert not (first & ~masks).any() and (first.sum(1) < masks.sum(1)).any()
    assert not torch.equal(first, rows(progress=0.1)) and torch.equal(rows(progress=0.1), rows(progress=0.15)), "between two steps the draw of the step holds"
    assert not torch.equal(first, rows(m=replace(m, seed=4)))
    many = torch.ones(1, 20000, dtype=torch.bool)
    assert abs(float(Draws(1, 2, 3, 0).kept(many, 0.7).float().mean()) - 0.3) < 0.02
    one = torch.tensor([[True, False]])
    assert all(torch.equal(Draws(s, 0, 2, 0).kept(one, 0.95), one) for s in range(20)), "a subject never loses all its tokens"


@pytest.mark.parametrize("rows", [(0,), (0, 1)])
def test_subjects_read_the_texts_of_their_portraits(rows):
    q, k, v = tensors(3 * len(rows), Y * X, 7)
    call = call_of("cross", (q, k, v), rows, spans_k=(Span("text", 7),))
    got, stock = run(method(cross=0.75), call), softmax(q, k, v)
    masks = apart_on_grid(SCENE[0], Y, X).flatten(1)
    for first in range(0, 3 * len(rows), 3):
        want = stock[first + 2].clone()
        for i in range(2):
            want[:, masks[i]] = 0.25 * want[:, masks[i]] + 0.75 * softmax(q[first + 2], k[first + i], v[first + i])[:, masks[i]]
        assert torch.equal(got[first : first + 2], stock[first : first + 2])
        assert torch.allclose(got[first + 2], want, atol=1e-6)
    assert not method(cross=0.0).wants(call)


def test_each_scene_can_have_masks_of_its_own():
    qkv = tensors(4, Y * X)
    flipped = SCENE.flip(-1)
    got = run(method(scene=torch.cat([SCENE, flipped])), call_of("self", qkv))
    one, two = (run(method(scene=s), call_of("self", qkv)) for s in (SCENE, flipped))
    assert torch.equal(got[2], one[2]) and torch.equal(got[3], two[3]) and not torch.equal(got[3], one[3])


def test_a_batch_in_parts_keeps_what_others_ask_of_it():
    qkv = tensors(3, Y * X)
    call = call_of("self", qkv)
    draft = draft_of(method(reading="off"), call)
    bias = torch.randn(3, 1, Y * X, generator=torch.Generator().manual_seed(2))
    draft.bias("other", bias)
    kinds = Labels(torch.tensor([0, 1, 0]).to(torch.int8)[:, None].expand(3, Y * X), torch.full((3, Y * X), 3), 2)
    other = Draft(call, parts=draft.parts)
    other.admit("other", kinds)
    assert [part.labels[0][1].label_k[:, 0].tolist() for _, part in parted(other)] == [[0], [0, 1]]
    for elements, part in parted(draft):
        assert torch.equal(part.plan().key_bias, bias[list(elements)]) and part.call.batch == len(elements)
        assert (part.plan().labels is not None) == (elements == (2,))
    draft.probe("reader", Probe("x", "entropy"))
    with pytest.raises(ConflictError, match="reader"):
        parted(draft)
