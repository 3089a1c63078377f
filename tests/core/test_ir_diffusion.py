"""IR-Diffusion: masks and moves against plain loops, one call against fp64 softmax over the written-out mask, and whole runs."""

from dataclasses import replace

import host_inprocess
import numpy
import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.call import AttentionCall, Block, Seen, Span, TokenLayout
from attention_loom.core.concepts import Concept, Located
from attention_loom.core.draws import Draws
from attention_loom.core.errors import ConflictError, LoomError
from attention_loom.core.families.base import RopePlane
from attention_loom.core.isolation import isolated
from attention_loom.core.methods.entropy_scale import EntropyScale
from attention_loom.core.methods.ir_diffusion import IRDiffusion
from attention_loom.core.parted import parted
from attention_loom.core.places import apart_on_grid, closed, covered, disjoint, on_grid, refined, stack, without_bottom
from attention_loom.core.reposition import in_place, pasted, repositioned
from attention_loom.core.subject_batch import before, latents, prompts
from attention_loom.core.weave import Draft
from attention_loom.kernels import attend
from attention_loom.kernels.plan import Labels, Probe
from scipy import ndimage

OWNER = IRDiffusion.owner
H, D = 2, 12
Y, X = 4, 6


def box(top, bottom, left, right, y=32, x=48):
    mask = torch.zeros(y, x)
    mask[round(top * y) : round(bottom * y), round(left * x) : round(right * x)] = 1
    return mask


SCENE = torch.stack([box(0.25, 1, 0, 0.34), box(0, 0.75, 0.5, 1)])[None]
REFERENCES = torch.stack([box(0.25, 0.75, 0.34, 0.84), box(0, 1, 0.17, 0.67)])


def method(**settings):
    return IRDiffusion(**dict(scene=SCENE, references=REFERENCES, dropout=0.0) | settings)


# --- masks and moves --------------------------------------------------------------------------------------------------


def test_masks_on_a_grid():
    got = on_grid(REFERENCES, Y, X)
    want = torch.zeros(2, Y, X, dtype=torch.bool)
    want[0, 1:3, 2:5] = True
    want[1, :, 1:4] = True
    assert torch.equal(got, want)
    assert torch.equal(on_grid(REFERENCES, Y, X, 0.0), want), "Otsu's threshold on masks of 0 and 1"
    dot = torch.zeros(1, 32, 48)
    dot[0, 17, 23] = 1
    assert on_grid(dot, Y, X).nonzero().tolist() == [[0, 2, 2]], "a subject smaller than a token is on the token it covers"
    assert not on_grid(torch.zeros(1, 32, 48), Y, X).any()
    assert covered(0.5 * REFERENCES, Y, X).max() == 1.0


def test_no_token_has_two_subjects_and_none_is_lost():
    near = torch.stack([box(0, 1, 0, 0.45), box(0, 1, 0.45, 1), box(0.3, 0.4, 0.1, 0.14)])
    got = apart_on_grid(near, Y, X)
    assert int(got.sum(0).max()) == 1 and got.flatten(1).any(1).all()
    crowded = apart_on_grid(near, 1, 2)
    assert int(crowded.sum(0).max()) == 1 and crowded.flatten(1).any(1).tolist() == [True, True, False]


def test_scene_masks_are_parted_and_grown():
    slight = torch.stack([box(0, 0.5, 0, 0.5), box(0.48, 1, 0, 1)])
    got = disjoint(slight, "refuse")
    assert not (got[0] * got[1]).any() and torch.equal(got[0], slight[0]), "the smaller one keeps what both have"
    deep = torch.stack([box(0, 1, 0, 0.7), box(0, 1, 0.5, 1)])
    with pytest.raises(LoomError, match="subjects 1 and 2 overlap in 42% of the smaller one"):
        disjoint(deep, "refuse")
    assert torch.equal(disjoint(deep, "first wins")[0], deep[0]) and torch.equal(disjoint(deep, "smaller wins")[1], deep[1])
    small = torch.stack([box(0.4, 0.5, 0.1, 0.2), box(0, 1, 0.5, 1)])
    grown = refined(small, 0.5)
    side = round(0.5 * (32 * 48) ** 0.5)
    rows, columns = (int(grown[0].any(d).sum()) for d in (1, 0))
    assert (rows, columns) == (side, side) and not (grown[0] * grown[1]).any() and torch.equal(grown[1], small[1])
    assert torch.equal(refined(small, 0.0), small)
    beside = torch.stack([box(0.4, 0.5, 0.1, 0.2), box(0, 1, 0.25, 1)])
    assert torch.equal(refined(beside, 0.5)[1], beside[1]) and not (refined(beside, 0.5)[0] * beside[1]).any()
    three = disjoint(torch.stack([box(0, 1, 0, 0.6), box(0.9, 1, 0.9, 1), box(0, 1, 0.3, 1)]), "first wins")
    assert int(three.sum(0).max()) == 1
    holed = box(0.2, 0.8, 0.2, 0.8).bool()
    holed[15, 24] = False
    assert torch.equal(closed(holed, 4), box(0.2, 0.8, 0.2, 0.8).bool())
    assert without_bottom(SCENE[0], 0.25)[:, 24:].sum() == 0 and torch.equal(without_bottom(SCENE[0], 0.0), SCENE[0])


def slow_refined(masks, least):
    """The spec's fourth step with scipy: close, keep within the own box, widen what is small, leave the others alone."""
    own = [mask.bool().numpy() for mask in masks]
    height, width = own[0].shape
    side = least * (height * width) ** 0.5
    reach = max(1, round(side / 2)) // 2
    for i in sorted(range(len(own)), key=lambda n: own[n].sum()):
        ys, xs = own[i].nonzero()
        top, bottom, left, right = ys.min(), ys.max(), xs.min(), xs.max()
        padded = numpy.pad(own[i], reach)
        structure = numpy.ones((2 * reach + 1,) * 2)
        eroded = ndimage.binary_erosion(ndimage.binary_dilation(padded, structure), structure, border_value=1)
        made = numpy.zeros_like(own[i])
        made[top : bottom + 1, left : right + 1] = eroded[reach : height + reach, reach : width + reach][top : bottom + 1, left : right + 1]
        tall, wide, small = bottom - top + 1 >= side, right - left + 1 >= side, made.sum() < side * side
        if small or not tall or not wide:
            n = round(side)
            first_row = min(max(0, round((top + bottom + 1 - n) / 2)), height - n) if small or not tall else top
            first_column = min(max(0, round((left + right + 1 - n) / 2)), width - n) if small or not wide else left
            last_row = first_row + n - 1 if small or not tall else bottom
            last_column = first_column + n - 1 if small or not wide else right
            made[first_row : last_row + 1, first_column : last_column + 1] = True
        for j in range(len(own)):
            if j != i:
                made &= ~own[j]
        own[i] = made
    return torch.from_numpy(numpy.stack(own)).float()


def test_scene_masks_grow_as_the_paper_has_it():
    g = torch.Generator().manual_seed(4)
    kinds = set()
    for n in range(60):
        claims = torch.zeros(3, 32, 48)
        for i in range(3):
            y, x, h, w = (int(torch.randint(low, high, (), generator=g)) for low, high in ((0, 24), (0, 40), (1, 20), (1, 28)))
            claims[i, y : y + h, x : x + w] = (torch.rand(claims[i, y : y + h, x : x + w].shape, generator=g) > 0.4).float()
            claims[i, y, x] = 1
        masks = disjoint(claims, "smaller wins" if n % 2 else "first wins")
        if not masks.flatten(1).any(1).all():
            continue
        got = refined(masks, 0.26)
        assert torch.equal(got, slow_refined(masks, 0.26))
        kinds |= {tuple(bool(m.any(1).sum() < 10) or bool(m.any(0).sum() < 10) for m in masks)}
    assert len(kinds) > 2, "small and large ones in several orders"
    soft = 0.4 * torch.ones(2, 8, 8)
    assert torch.equal(refined(soft, 0.0), soft)
    empty = torch.stack([torch.zeros(32, 48), box(0.4, 0.5, 0.1, 0.2)])
    assert not refined(empty, 0.26)[0].any() and torch.equal(refined(empty, 0.26)[1:], slow_refined(empty[1:], 0.26))


def test_the_smaller_subject_says_how_much_is_too_much():
    large, small = box(0, 1, 0, 0.5), box(0.4, 0.6, 0.46, 0.76)
    with pytest.raises(LoomError, match="overlap in 14% of the smaller one"):
        disjoint(torch.stack([large, small]), "refuse")


def slow_reposition(reference, scene):
    """The spec's map, token by token."""
    ys, xs = reference.nonzero().T
    rt, rb, rl, rr = int(ys.min()), int(ys.max()), int(xs.min()), int(xs.max())
    ys, xs = scene.nonzero().T
    tt, tb, tl, tr = int(ys.min()), int(ys.max()), int(xs.min()), int(xs.max())
    out = []
    for y in range(tt, tb + 1):
        for x in range(tl, tr + 1):
            sy, sx = rt + (y - tt) * (rb - rt + 1) // (tb - tt + 1), rl + (x - tl) * (rr - rl + 1) // (tr - tl + 1)
            if reference[sy, sx]:
                out.append((sy * reference.shape[1] + sx, y - sy, x - sx))
    return out


def test_reposition_is_the_nearest_token_map():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        reference, scene = (torch.rand(7, 9, generator=g) > 0.7 for _ in range(2))
        got = repositioned(reference, scene)
        assert [(int(s), int(dy), int(dx)) for s, (dy, dx) in zip(got.source, got.shift, strict=True)] == slow_reposition(reference, scene)
    mask = torch.rand(7, 9, generator=g) > 0.6
    same = repositioned(mask, mask)
    assert torch.equal(same.source, mask.flatten().nonzero()[:, 0]) and not same.shift.any(), "masks that are equal move nothing"
    assert torch.equal(in_place(mask, scene).source, same.source)
    assert repositioned(mask, torch.zeros_like(mask)) is None and in_place(torch.zeros_like(mask), mask) is None


def test_a_picture_is_cropped_resized_and_pasted():
    picture = torch.arange(2 * 8 * 12.0).reshape(2, 8, 12)
    reference, scene = torch.zeros(8, 12, dtype=torch.bool), torch.zeros(8, 12, dtype=torch.bool)
    reference[1:4, 2:6], scene[4:7, 7:11] = True, True
    got, mask = pasted(picture, reference, scene)
    assert torch.equal(got[:, 4:7, 7:11], picture[:, 1:4, 2:6]) and torch.equal(mask, scene), "a move alone keeps the pixels"
    ground = picture[:, ~reference].mean(1)
    assert torch.allclose(got[:, ~scene], ground[:, None].expand(-1, int((~scene).sum())))
    wide = torch.zeros_like(scene)
    wide[0:8, 0:12] = True
    same = torch.full((1, 1, 8, 12), 3.0)
    same[..., 1:4, 2:6] = 5.0
    got, mask = pasted(same, reference, wide)
    assert got.shape == same.shape and torch.allclose(got, torch.full_like(got, 5.0)) and mask.all(), "a larger place is filled"
    assert pasted(picture, reference, torch.zeros_like(scene))[0] is picture
    dot = torch.zeros_like(scene)
    dot[2, 2] = dot[5, 9] = True
    assert pasted(picture, dot, torch.roll(dot, 1, 1) & False | (torch.arange(8)[:, None] == 3) & (torch.arange(12) == 3))[1].any()


# --- one call ---------------------------------------------------------------------------------------------------------

IMAGE = Span("image", Y * X, (1, Y, X))
PLANE = RopePlane(torch.linspace(0, 1, 12).reshape(2, 1, 6).double())


def softmax(q, k, v, mask=None):
    logits = q @ k.transpose(-1, -2) / D**0.5
    return torch.softmax(logits if mask is None else logits.masked_fill(~mask, float("-inf")), -1) @ v


def tensors(batch, n, m=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, H, count, D, generator=g, dtype=torch.float64) for count in (n, m or n, m or n))


def call_of(kind, qkv, rows=(0,), text=0, progress=0.0, steps=10, ordinal=8, spans_k=None, **more):
    spans = (Span("text", text), IMAGE) if text else (IMAGE,)
    q = TokenLayout(spans)
    k = q if spans_k is None else TokenLayout(spans_k)
    made = dict(family="SD3", block=Block("double", ordinal, ordinal, 10)) | more
    cpu = torch.device("cpu")
    return AttentionCall(
        kind=kind, heads=H, width=D, q=q, k=k, sigma=1.0, progress=progress, rows=rows, batch=len(qkv[0]), device=cpu, dtype=torch.float64, steps=steps,
        seen=Seen(*qkv, None, None, softmax), **made,
    )  # fmt: skip


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


WORDS = Located((Concept("a", (1, 2), ("a", "b")), Concept("c", (4,), ("c",))), (1, 2, 3, 4), 6)


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


# --- whole runs -------------------------------------------------------------------------------------------------------

LATENT = {"sd15": (3, 4, 8, 12), "sd3": (3, 16, 8, 12), "flux": (3, 16, 8, 12), "qwen_image": (3, 16, 1, 8, 12), "sdxl": (3, 4, 16, 24)}


@pytest.fixture(scope="module")
def host():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def batch(name, targets=1):
    """A tiny model with two references and scenes in one batch, every row with its own prompt."""
    model = tiny_models.tiny(name, latent=(2 + targets, *LATENT[name][1:]))
    g = torch.Generator().manual_seed(5)

    def rows(conditioning):
        text, facts = conditioning[0]
        made = {key: torch.randn(2 + targets, *x.shape[1:], generator=g) for key, x in facts.items() if key == "pooled_output"}
        return [[torch.randn(2 + targets, *text.shape[1:], generator=g), facts | made]]

    return model._replace(positive=rows(model.positive), negative=rows(model.negative))


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "qwen_image"])
def test_references_come_out_as_without_the_node(host, name):
    model = batch(name)
    stock = tiny_models.sample(model.patcher, model)
    patched = attach(model.patcher, method(start_layer=0, dropout=0.5))
    ours = tiny_models.sample(patched, model)
    run_ = record_of(patched).last
    assert torch.isfinite(ours).all() and torch.equal(ours[:2], stock[:2])
    assert (ours[2] - stock[2]).abs().max() > 1e-3 * stock.abs().max()
    parts = {(e.kind, e.parts) for e in run_.entries if e.planned}
    want = {("self", ("extra_kv", "labels")), ("cross", ("asides",))} if name == "sd15" else {("joint", ("extra_kv", "labels"))}
    assert want <= parts and run_.touched[OWNER] > 0
    assert torch.equal(ours, tiny_models.sample(patched, model)), "a second run is the same, dropout included"
    assert torch.equal(stock, tiny_models.sample(model.patcher, model)), "the model itself is as before"


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_off_and_one_subject_alone_are_bit_identical(host, name):
    model = batch(name)
    stock = tiny_models.sample(model.patcher, model)
    nothing = dict(isolation=False, reading="off", cross=0.0)
    empty = dict(scene=torch.zeros_like(SCENE), allow_missing=True)
    single = dict(scene=SCENE[:, :1], references=REFERENCES[:1])
    for settings in (nothing, dict(strength=0.0), empty, single | dict(reading="off", cross=0.0)):
        assert methods_of(attach(model.patcher, method(**settings))) == ()
    rests = attach(model.patcher, method(**single, reading="reposition", read_to=0.0, cross=0.0))
    assert torch.equal(stock, tiny_models.sample(rests, model)), "one subject is isolated from nobody: stock code"
    assert record_of(rests).last.touched == {OWNER: 0}


@pytest.mark.host
def test_guidance_off_or_in_calls_of_its_own(host, monkeypatch):
    model = batch("sd15")
    patched = attach(model.patcher, method(start_layer=0))
    together = tiny_models.sample(patched, model)
    alone = tiny_models.sample(patched, model, cfg=1.0)
    assert torch.isfinite(alone).all() and torch.equal(alone[:2], tiny_models.sample(model.patcher, model, cfg=1.0)[:2])
    monkeypatch.setattr(type(model.patcher.model), "memory_required", lambda *a, **k: 1e30)
    assert (together - tiny_models.sample(patched, model)).abs().max() < 1e-4 * together.abs().max()


@pytest.mark.host
def test_other_nodes_in_any_order(host):
    model = batch("sd15")
    mine, other = method(start_layer=0), EntropyScale(trained=((1, 16, 16),))
    one, two = attach(attach(model.patcher, mine), other), attach(attach(model.patcher, other), mine)
    ours = tiny_models.sample(one, model)
    assert torch.equal(ours, tiny_models.sample(two, model))
    assert torch.equal(ours[:2], tiny_models.sample(attach(model.patcher, other), model)[:2]), "references take what the other node asks, and nothing else"
    assert any({"labels", "modulation"} <= set(e.parts) for e in record_of(one).last.entries if e.planned)


@pytest.mark.host
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: method(references=REFERENCES[:1]), "2 scene masks and 1 reference masks were given"),
        (lambda: method(scene=SCENE * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)), "subject 2 has an empty scene mask"),
        (lambda: method(references=REFERENCES * 0), "subject 1 has an empty reference mask"),
        (lambda: method(scene=SCENE[:, :1].repeat(1, 17, 1, 1), references=REFERENCES[:1].repeat(17, 1, 1)), "17 subjects were given and 16 fit"),
        (lambda: method(cross=1.5), "cross_lambda 1.5 was given"),
        (lambda: method(dropout=0.99), "query_dropout 0.99 was given"),
        (lambda: stack(SCENE[0] * 2, "scene_masks"), "scene_masks has values from 0 to 2"),
        (lambda: attach(tiny_models.tiny("wan").patcher, method()), "works on pictures and was given Wan"),
        (lambda: attach(tiny_models.tiny("svd").patcher, method()), "works on pictures"),
        (lambda: attach(tiny_models.tiny("flux2").patcher, method()), "cannot read the rotary positions of this FLUX model"),
        (lambda: attach(tiny_models.tiny("sd15").patcher, method(start_layer=10)), "start_layer 10 was given and the model has 10 layers"),
        (lambda: sampled("sd3", batch("sd3")._replace(latent=torch.zeros(2, 16, 8, 12))), "the latent has 2 pictures, and the masks are for 2 references and 1 scenes"),
        (lambda: sampled("sd3", batch("sd3", 1), scene=torch.cat([SCENE, SCENE])), "the latent has 3 pictures, and the masks are for 2 references and 2 scenes"),
        (lambda: sampled("sd3", batch("sd3"), scene=SCENE[:, :, :16]), "the scene masks are 48 x 16 and the picture has 6 x 4 tokens"),
        (lambda: sampled("sd3", batch("sd3"), references=torch.stack([box(0, 1, 0, 0.17), REFERENCES[1]])), "the reference mask of subject 1 is 1 x 4 tokens"),
        (lambda: sampled("sd15", batch("sd15"), replaced="attn1"), "another node replaces its attention"),
        (lambda: sampled("sd15", batch("sd15"), replaced="attn2"), "Take that node out, or set cross_lambda to 0"),
        (lambda: sampled("sd3", one_row(batch("sd3"))), "the positive prompt has 1 rows and the latent 3 pictures"),
        (lambda: sampled("sd3", batch("sd3")._replace(negative=batch("sd3", 2).negative)), "the negative prompt has 4 rows and the latent 3 pictures"),
        (lambda: sampled("sd3", combined(batch("sd3"))), "the positive prompt consists of 2 conditionings"),
        (lambda: in_windows(method(), (0, 1)), "cannot work with context windows"),
        (lambda: method(words=replace(WORDS, concepts=WORDS.concepts[:1])), "2 subjects have masks and subject_words names 1"),
        (lambda: method(strength=1.5), "strength 1.5 was given"),
        (lambda: method(threshold=0.96), "mask_threshold 0.96 was given"),
        (lambda: method(reading="x"), "references 'x' was given"),
    ],
)
def test_what_does_not_fit_is_said(host, make, words):
    with pytest.raises(LoomError, match=words):
        make()


def one_row(model):
    return model._replace(positive=[[model.positive[0][0][:1], model.positive[0][1]]])


def combined(model):
    return model._replace(positive=[*model.positive, *model.positive])


def in_windows(m, frames):
    m.contribute(replace(call_of("self", tensors(3, Y * X)), frames=frames), None)


@pytest.mark.host
def test_a_negative_prompt_of_one_row_is_that_of_all_pictures(host):
    model = batch("sd3")
    negative = model.negative[0][0][:1]
    pooled = model.negative[0][1]["pooled_output"][:1]
    repeated = model._replace(negative=[[negative.expand(3, -1, -1), model.negative[0][1] | {"pooled_output": pooled.expand(3, -1)}]])
    single = model._replace(negative=[[negative, model.negative[0][1] | {"pooled_output": pooled}]])
    patched = attach(model.patcher, method(start_layer=0))
    assert torch.equal(tiny_models.sample(patched, repeated), tiny_models.sample(patched, single))


@pytest.mark.host
def test_texts_replaced_elsewhere_leave_the_rest(host):
    model = batch("sd15")
    patcher = model.patcher.clone()
    patcher.set_model_attn2_replace(lambda q, k, v, extra: torch.zeros_like(q), "middle", 0)
    stock, ours = (tiny_models.sample(p, model, cfg=1.0) for p in (patcher, attach(patcher, method(start_layer=0, cross=0.0))))
    assert torch.equal(ours[:2], stock[:2]) and not torch.equal(ours[2], stock[2])


def sampled(name, model, replaced="", **settings):
    patcher = model.patcher.clone()
    if replaced == "attn2":
        patcher.set_model_attn2_replace(lambda q, k, v, extra: v, "middle", 0)
    elif replaced:
        patcher.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    return tiny_models.sample(attach(patcher, method(start_layer=0, **settings)), model)


# --- one batch --------------------------------------------------------------------------------------------------------


def text(seed, n=5, **facts):
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, n, 8, generator=g), {"pooled_output": torch.randn(1, 4, generator=g)} | facts]]


def test_references_and_scene_in_one_batch():
    scene, portraits = text(0, guidance=3.5), [text(1), text(2)]
    ((rows, facts),) = prompts(scene, portraits, 2)
    assert rows.shape == (4, 5, 8) and facts["pooled_output"].shape == (4, 4) and facts["guidance"] == 3.5
    for row, source in zip(rows, (*portraits, scene, scene), strict=True):
        assert torch.equal(row, source[0][0][0])
    made = latents({"samples": torch.zeros(2, 4, 8, 8)}, 2)
    assert made["samples"].shape == (4, 4, 8, 8) and made["batch_index"] == [2, 2, 0, 1]
    own = torch.randn(2, 4, 8, 8)
    assert torch.equal(latents({"samples": torch.zeros(1, 4, 8, 8)}, 2, {"samples": own})["samples"][:2], own)
    for act, words in (
        (lambda: prompts(scene, [text(1, 6)], 1), "portrait 1 prompt has 6 tokens of width 8 and the scene prompt 5"),
        (lambda: prompts(scene * 2, portraits, 1), "scene prompt consists of 2 conditionings"),
        (lambda: prompts(scene, [text(1, area=(1, 1, 0, 0))], 1), "portrait 1 prompt carries 'area'"),
        (lambda: prompts(text(0, attention_mask=torch.ones(1, 5)), portraits, 1), "carry a mask of their padding"),
        (lambda: prompts(scene, [text(1)] * 17, 1), "17 portraits were given and 16 fit"),
        (lambda: latents({"samples": torch.zeros(1, 4, 8, 8), "noise_mask": 1}, 2), "has a noise mask"),
        (lambda: latents({"samples": torch.zeros(1, 4, 8, 8)}, 2, {"samples": torch.zeros(2, 16, 8, 8)}), r"the references' latent is \(16, 8, 8\) and the scene's \(4, 8, 8\)"),
        (lambda: latents({"samples": torch.zeros(1, 4, 8, 8)}, 2, {"samples": torch.zeros(1, 4, 8, 8)}), "2 portrait prompts and 1 reference latents"),
    ):
        with pytest.raises(LoomError, match=words):
            act()


@pytest.mark.host
def test_the_scene_keeps_the_noise_it_has_alone(host):
    import comfy.sample

    made = latents({"samples": torch.zeros(1, 4, 8, 8)}, 2)
    noise = comfy.sample.prepare_noise(made["samples"], 9, made["batch_index"])
    assert torch.equal(noise[2:], comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), 9))
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


# --- the nodes --------------------------------------------------------------------------------------------------------


@pytest.mark.host
def test_from_prompts_and_places_to_a_scene(host):
    from attention_loom.nodes.ir_diffusion import LoomIRDiffusion, LoomPlaceMasks, LoomSubjectBatch

    model = tiny_models.tiny("sd3", prompts=(5, 5))
    g = torch.Generator().manual_seed(8)
    texts = [[[torch.randn(1, 5, 48, generator=g), {"pooled_output": torch.randn(1, 32, generator=g)}]] for _ in range(4)]
    latent = {"samples": torch.zeros(1, 16, 8, 12)}
    positive, negative, made, count = LoomSubjectBatch.execute(texts[0], texts[1], latent, portrait_1=texts[2], portrait_2=texts[3]).result
    assert count == 2 and positive[0][0].shape == negative[0][0].shape == (3, 5, 48) and torch.equal(negative[0][0][0], negative[0][0][2])
    (scene,) = LoomPlaceMasks.execute("a @ left\nb @ 0.6, 0, 1, 1", 96, 64, 0.3).result
    (own,) = LoomPlaceMasks.execute("a @ center\nb @ center", 96, 64, 0.4).result
    assert scene.shape == (2, 64, 96) and set(scene.unique().tolist()) == {0.0, 1.0}
    (patched,) = LoomIRDiffusion.execute(model.patcher, scene, own, min_mask=0.0, start_layer=0).result
    (m,) = methods_of(patched)
    assert torch.equal(m.scene, scene[None]) and torch.equal(m.references, own)
    whole = model._replace(positive=positive, negative=negative, latent=made["samples"])
    stock, ours = (tiny_models.sample(p, whole) for p in (model.patcher, patched))
    assert torch.equal(ours[:2], stock[:2]) and not torch.equal(ours[2], stock[2])
    (off,) = LoomIRDiffusion.execute(model.patcher, scene, own, strength=0.0).result
    assert methods_of(off) == ()


@pytest.mark.host
def test_the_node_makes_masks_ready(host):
    from attention_loom.nodes.ir_diffusion import LoomPlaceMasks, configure

    small = torch.stack([box(0.4, 0.5, 0.1, 0.2), box(0, 1, 0.5, 1)])
    m = configure(small, REFERENCES, min_mask=0.5, trim_reference_bottom=0.25)
    assert int(m.scene[0, 0].sum()) > int(small[0].sum()) and m.references[:, 24:].sum() == 0
    assert configure(torch.cat([small, small]), REFERENCES).scene.shape == (2, 2, 32, 48), "two scenes"
    deep = torch.stack([box(0, 1, 0, 0.7), box(0, 1, 0.5, 1)])
    for act, words in (
        (lambda: configure(torch.cat([small, small[:1]]), REFERENCES), "3 scene masks and 2 reference masks"),
        (lambda: configure(deep, REFERENCES), "overlap in 42%"),
        (lambda: configure(deep, REFERENCES, overlap="x"), "overlap 'x' was given"),
        (lambda: configure(small, REFERENCES, references="x"), "references 'x' was given"),
        (lambda: LoomPlaceMasks.execute("", 64, 64), "no place was given"),
    ):
        with pytest.raises(LoomError, match=words):
            act()


def test_more_portraits_join_a_batch():
    scene, negative = text(0), text(9)
    first = latents({"samples": torch.zeros(2, 4, 8, 8)}, 2)
    positive, against = prompts(scene, [text(1), text(2)], 2), prompts(negative, [negative] * 2, 2)
    assert before(first) == 2
    both = latents(first, 1)
    assert both["samples"].shape[0] == 5 and both["batch_index"] == [2, 2, 2, 0, 1] and before(both) == 3
    ((rows, facts),) = prompts(positive, [text(3)], 4, 2)
    for row, pooled, source in zip(rows, facts["pooled_output"], (text(1), text(2), text(3), scene, scene), strict=True):
        assert torch.equal(row, source[0][0][0]) and torch.equal(pooled, source[0][1]["pooled_output"][0])
    ((rows, _),) = prompts(against, [against], 4, 2)
    assert all(torch.equal(row, negative[0][0][0]) for row in rows)
    part = both | {"samples": both["samples"][3:4], "batch_index": both["batch_index"][3:4]}
    assert before(part) == 0, "one picture taken out of a batch is a scene"
    own = [[torch.cat([text(i)[0][0] for i in (5, 6)]), {}]]
    ((rows, _),) = prompts(own, [[[text(1)[0][0], {}]]], 2)
    assert torch.equal(rows[1:], own[0][0]), "scenes with prompts of their own"
    for act, words in (
        (lambda: prompts(scene, [text(3)], 4, 2), "need one row or 4, as the latent has pictures, and one of them has 1"),
        (lambda: prompts(positive, [text(3)], 2), "need one row or 2"),
        (lambda: prompts(positive, [text(1)] * 15, 4, 2), "17 portraits were given and 16 fit"),
    ):
        with pytest.raises(LoomError, match=words):
            act()


@pytest.mark.host
def test_the_node_finds_the_subjects_words(host):
    from types import SimpleNamespace

    from attention_loom.nodes.ir_diffusion import configure
    from comfy.sd1_clip import SD1Tokenizer

    own = SD1Tokenizer()
    clip = SimpleNamespace(tokenizer=own, cond_stage_model=object(), tokenize=lambda text, return_word_ids=False, **kw: own.tokenize_with_weights(text, return_word_ids, **kw))
    masks = dict(scene_masks=SCENE[0], reference_masks=REFERENCES, scene_prompt="a red fox and a snowy owl")
    words = configure(**masks, clip=clip, subject_words=" red fox \n\nsnowy owl\n").words
    assert [c.tokens for c in words.concepts] == [(2, 3), (6, 7)] and words.length == 77
    assert configure(**masks, clip=clip).words is None
    for more, sentence in (
        (dict(clip=None, subject_words="red fox\nsnowy owl"), "connect it to clip"),
        (dict(clip=clip, subject_words="red fox\nwolf"), "'wolf' does not stand in the prompt"),
        (dict(clip=clip, subject_words="red fox"), "2 subjects have masks and subject_words names 1"),
    ):
        with pytest.raises(LoomError, match=sentence):
            configure(**masks, **more)


@pytest.mark.host
def test_sdxl_from_prompts_to_pictures_in_both_ways(host):
    """What the SDXL workflows do behind their loaders: pooled vectors by row, grids of several sizes, pictures of one's own."""
    from attention_loom.nodes.ir_diffusion import LoomIRDiffusion, LoomPlaceMasks, LoomReferencePictures, LoomSubjectBatch

    model = tiny_models.tiny("sdxl", latent=(1, *LATENT["sdxl"][1:]))
    g = torch.Generator().manual_seed(8)
    facts = model.positive[0][1]
    texts = [[[torch.randn(1, 5, 2048, generator=g), facts | {"pooled_output": torch.randn(1, 1280, generator=g)}]] for _ in range(4)]
    positive, negative, made, count = LoomSubjectBatch.execute(texts[0], texts[1], {"samples": model.latent}, portrait_1=texts[2], portrait_2=texts[3]).result
    assert positive[0][1]["pooled_output"].shape == (3, 1280) and count == 2
    (scene,) = LoomPlaceMasks.execute("a @ 0, 0, 0.5, 1\nb @ 0.5, 0, 1, 1", 192, 128).result
    (own,) = LoomPlaceMasks.execute("a @ 0.15, 0.1, 0.85, 0.9\nb @ 0.15, 0.1, 0.85, 0.9", 192, 128).result
    (patched,) = LoomIRDiffusion.execute(model.patcher, scene, own).result
    whole = model._replace(positive=positive, negative=negative, latent=made["samples"])
    stock, ours = (tiny_models.sample(p, whole, steps=1, cfg=1.0) for p in (model.patcher, patched))
    assert torch.equal(ours[:2], stock[:2]) and torch.isfinite(ours).all() and not torch.equal(ours[2], stock[2])
    parts = {e.parts for e in record_of(patched).last.entries if e.planned}
    assert {("asides",), ("extra_kv", "labels"), ("labels",)} <= parts, "isolation in all layers, references in the later ones"
    pictures = {"samples": torch.randn(2, *model.latent.shape[1:], generator=g)}
    (references,) = LoomReferencePictures.execute(pictures, texts[1], portrait_1=texts[2], portrait_2=texts[3]).result
    (beside,) = LoomIRDiffusion.execute(model.patcher, scene, own, subjects=references, reposition_level="latent").result
    alone = model._replace(positive=texts[0], negative=texts[1])
    drawn, plain = (tiny_models.sample(p, alone, steps=1, cfg=1.0) for p in (beside, model.patcher))
    assert torch.isfinite(drawn).all() and not torch.equal(drawn, plain)
