"""DiTraj in one call: positions, subjects, twins and texts against dense masked attention in fp64."""

from dataclasses import replace

import pytest
import torch
from attention_loom.core.call import Block, Span
from attention_loom.core.errors import ConflictError
from attention_loom.core.families.base import RopePlane
from attention_loom.core.methods.ditraj import DiTraj
from attention_loom.core.methods.riflex import RIFLEx
from attention_loom.core.trajectory import moved, paths
from attention_loom.core.weave import weave
from attention_loom.kernels import attend
from ditraj_runs import OWNER, PATH, VIDEO, D, H, call_of, draft_of, method, softmax, tensors, text


def test_objects_and_their_twins_do_not_see_each_other():
    q, k, v = tensors(77)
    call = call_of("joint", spans_q=(VIDEO, Span("text", 5)))
    still = replace(method(), mask_end=0.0, strength=1e-30)  # a rotation by nothing leaves the rule alone
    made = moved(paths(PATH, 4, 6), 4, 6)
    front, twin = (torch.cat([x, torch.zeros(5, dtype=torch.bool)]) for x in (made.subject > 0, made.twin))
    allowed = ~((front[:, None] & twin[None]) | (twin[:, None] & front[None]))
    assert int((~allowed).sum()) > 0
    ours = attend(q, k, v, draft_of(still, call).plan())
    assert torch.allclose(ours, softmax(q, k, v, allowed), atol=1e-5)
    free = draft_of(replace(still, twins=False), call).plan()
    assert free.labels is None


def project(width=48):
    g = torch.Generator().manual_seed(9)
    a, b = (torch.randn(H * D, width, generator=g, dtype=torch.float64) for _ in range(2))
    return lambda c: (c.double() @ a.T, c.double() @ b.T)


def heads(x):
    return x.unflatten(-1, (H, D)).transpose(1, 2)


@pytest.mark.parametrize("rows", [(1, 0), (0, 1), (0,)])
def test_each_region_reads_its_own_text(rows):
    m, reader = method("ltx"), project()
    q, k, v = tensors(72, 6, len(rows))
    call = call_of("cross", rows, spans_k=(Span("text", 6),), project=reader)
    ours = attend(q, k, v, draft_of(m, call).plan(), dense=softmax)
    subject = moved(paths(PATH, 4, 6), 4, 6).subject
    want = softmax(q, k, v)
    at = rows.index(0)
    for region, context in enumerate((m.background, *m.foregrounds)):
        own = softmax(q[at : at + 1], *(heads(x) for x in reader(context)))[0]
        want[at][:, subject == region] = own[:, subject == region]
    assert torch.allclose(ours, want, atol=1e-5)
    for i, row in enumerate(rows):
        if row == 1:
            assert torch.equal(ours[i], softmax(q, k, v)[i]), "the negative prompt is as before"


def test_the_prompt_itself_as_both_texts_changes_nothing():
    reader, prompt = project(), text(3)
    m = DiTraj(boxes=PATH, background=prompt, foregrounds=(prompt.clone(),))
    q = tensors(72)[0]
    k, v = (heads(x) for x in reader(prompt))
    call = call_of("cross", spans_k=(Span("text", 5),), project=reader)
    assert torch.allclose(attend(q, k, v, draft_of(m, call).plan(), dense=softmax), softmax(q, k, v), atol=1e-6)


@pytest.mark.parametrize(("steps", "mask", "rope"), [(50, 30, 5), (4, 3, 1), (1, 1, 1), (8, 5, 1)])
def test_both_parts_end_after_whole_steps(steps, mask, rope):
    m = method("ltx")
    for step in range(steps):
        cross = draft_of(m, call_of("cross", spans_k=(Span("text", 5),), progress=step / steps, steps=steps, project=project()))
        own = draft_of(m, call_of("self", progress=step / steps, steps=steps))
        assert bool(cross.asides) == (step < mask), step
        assert bool(own.rotations) == (step < rope), step
        assert (cross.asides or cross.reasons) and (own.rotations or own.reasons)


def test_windows_see_their_own_frames_and_the_anchor_of_the_whole():
    m = method()
    part = Span("video", 48, (2, 4, 6))
    whole, window = (draft_of(m, call_of("self", spans_q=(span,), frames=frames)).plan() for span, frames in ((VIDEO, None), (part, (1, 2))))
    assert torch.equal(whole.rotation.delta_q[24:], window.rotation.delta_q)
    assert torch.equal(whole.labels.label_k[:, 24:], window.labels.label_k)


def test_an_endless_clip_keeps_nothing_but_the_window_that_runs():
    from attention_loom.core.call import QueueWindow
    from attention_loom.core.report import Run

    m, run = method(), Run("Wan", (OWNER,), "cpu")
    draws = []
    for first in range(4):
        window = QueueWindow(0, 1, (first, first + 1), first, 0)
        call = call_of("self", spans_q=(Span("video", 48, (2, 4, 6)),), queue=window, frames=window.frames, run=run)
        draws.append(draft_of(m, call).plan())
        assert draft_of(m, call).plan().rotation.delta_q is draws[-1].rotation.delta_q, "once per window"
    assert not [key for key in run.state if OWNER in key]
    assert torch.equal(draws[1].rotation.delta_q, draft_of(m, call_of("self")).plan().rotation.delta_q[24:])
    assert torch.equal(draws[2].rotation.delta_q[24:], draws[3].rotation.delta_q[:24]), "beyond its end the path holds"


JOINT = (VIDEO, Span("text", 7))


@pytest.mark.parametrize("rows", [(1, 0), (0,)])
def test_texts_in_one_attention_with_the_video_are_parted(rows):
    m = replace(method("hunyuan_video"), rope_end=0.0)
    q, k, v = tensors(79, batch=len(rows))
    ours = attend(q, k, v, draft_of(m, call_of("joint", rows, spans_q=JOINT)).plan())
    region = torch.cat([moved(paths(PATH, 4, 6), 4, 6).subject, torch.tensor([0] * 3 + [1] * 4)])
    is_text = torch.arange(79) >= 72
    allowed = (region[:, None] == region[None]) | (~is_text[:, None] & ~is_text[None])
    at = rows.index(0)
    want = softmax(q, k, v)
    want[at] = softmax(q, k, v, allowed)[at]
    assert torch.allclose(ours, want, atol=1e-5)


def test_a_text_refiner_keeps_the_texts_apart_and_a_repeated_text_is_known():
    m = method("hunyuan_video")
    refiner = call_of("other", spans_q=(Span("text", 14),), block=Block("refiner", 0))
    labels = draft_of(m, refiner).plan().labels
    assert labels.label_k.tolist() == [[0, 0, 0, 1, 1, 1, 1] * 2]
    assert not replace(m, mask_end=0.0).wants(refiner)
    assert not m.wants(call_of("other", spans_q=(Span("text", 6),), block=Block("refiner", 0))), "the prompt itself"


def test_the_prompt_of_the_joined_length_is_told_by_the_step():
    m = replace(method("hunyuan_video"), prompt_tokens=7, rope_end=0.0)
    assert draft_of(m, call_of("joint", spans_q=JOINT)).labels
    assert not draft_of(m, call_of("joint", spans_q=JOINT, progress=0.9)).labels


def test_the_same_token_may_turn_along_other_axes_and_not_along_the_same():
    from attention_loom.core.families.base import RopeAxis

    time = RopeAxis(torch.tensor([2.5, 0.5]).double(), torch.tensor([[0, 1, -1, -1, -1, -1]]))
    plane = RopePlane(torch.tensor([[[0, 0, 1, 0.5, 0, 0]], [[0, 0, 0, 0, 1, 0.5]]], dtype=torch.float64))
    call = call_of("self", rope=time, plane=plane)
    riflex, path = RIFLEx(k=1), replace(method(), mask_end=0.0)
    draft = weave((riflex, path), call, lambda m: True)
    rotation = draft.plan().rotation
    assert rotation.freqs.shape == (3, 1, 6) and len(draft.rotations) == 2
    again = weave((path,), call, lambda m: True)
    again.rotate("another", path._moves(call)[0])
    with pytest.raises(ConflictError, match="both move the position of"):
        again.plan()
