"""Sparse attention on the host's real model classes: reach, separate memory per conditioning, tails, chains, what is freed."""

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core import woven
from attention_loom.core.attach import attach, record_of
from attention_loom.core.errors import ConflictError, LoomError
from attention_loom.core.methods.sparse import Memory, SparseAttention
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.core.schedule import BlockSelection, Window
from attention_loom.kernels.patterns.fit import NAMES, Choice
from test_attach import LONG, NATIVE, model, sample  # noqa: F401

pytestmark = pytest.mark.host


def sparse(name="draft", density=0.4, block=4, **more):
    """Blocks of a few tokens and no minimum: the models here are tiny."""
    tail = more.pop("tail", "off")
    return SparseAttention(Choice(name, density, block=block, tail=tail), min_tokens=0, **more)


# masked pair by pair, or with fewer queries than keys: their calls stay as they are
STAY = ("ideogram4_padded_text", "hidream_o1", "hidream_o1_references")


@pytest.mark.parametrize("family", [n for n in tiny_models.NAMES if n not in STAY])
def test_it_reaches_every_family(family):
    host_inprocess.import_host()
    with torch.inference_mode():
        tiny = tiny_models.tiny(family)
        stock = tiny_models.sample(tiny.patcher, tiny)
        patched = attach(tiny.patcher, sparse("sla_topk"))
        ours = tiny_models.sample(patched, tiny)
        run = record_of(patched).last
        assert run.touched[SparseAttention.owner] > 0
        assert torch.isfinite(ours).all()
        assert not torch.equal(stock, ours)
        assert {e.kind for e in run.entries if e.planned} <= {"self", "joint"}
        assert 0.0 < next(iter(run.density.values())) < 1.0
        whole = attach(tiny.patcher, sparse("dense", density=0.999))
        assert (tiny_models.sample(whole, tiny) - stock).abs().max() < 1e-3, "all blocks read: only rounding differs"
        assert record_of(whole).last.density == {next(iter(record_of(whole).last.density)): pytest.approx(1.0)}
        assert torch.equal(stock, tiny_models.sample(tiny.patcher, tiny)), "the model itself is as before"


@pytest.mark.parametrize("name", NAMES)
def test_every_pattern_runs_in_a_real_model(model, name):  # noqa: F811
    # on frames of 4 x 4 tokens any wider circle touches every block
    patched = attach(model, sparse(name, 0.2 if name == "clear" else 0.4, window=Window(0.2)))
    ours = sample(patched, NATIVE, steps=10)
    run = record_of(patched).last
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, sample(model, NATIVE, steps=10))
    (label,) = run.patterns
    assert label.startswith(name)
    assert run.patterns[label]["sparse"] > 0
    assert 0.0 < run.density[label] < 1.0
    assert run.state == {}, "freed with the run"
    assert torch.equal(ours, sample(patched, NATIVE, steps=10)), "a second run remembers nothing of the first"


@pytest.mark.parametrize("name", NAMES)
def test_batched_and_split_conditionings_agree(model, name, monkeypatch):  # noqa: F811
    patched = attach(model, sparse(name, window=Window(0.2)))
    together = sample(patched, NATIVE, steps=10)
    calls = sum(record_of(patched).last.entries.values())
    monkeypatch.setattr(model.model, "memory_required", lambda *a, **k: 1e30)
    split = sample(patched, NATIVE, steps=10)
    assert sum(record_of(patched).last.entries.values()) == 2 * calls, "the host ran the conditionings one by one"
    assert (together - split).abs().max() < 2e-3


def test_it_composes_with_a_decay_in_one_pass(model):  # noqa: F811
    decay = UltraViCo(train_frames=NATIVE, alpha=0.6)
    one = attach(attach(model, sparse("radial")), decay)
    other = attach(attach(model, decay), sparse("radial"))
    assert torch.equal(sample(one), sample(other))
    planned = [e for e in record_of(one).last.entries if e.planned]
    assert planned
    assert all(e.parts == ("blocks", "modulation") for e in planned)
    assert not torch.equal(sample(one), sample(attach(model, decay)))
    assert not torch.equal(sample(one), sample(attach(model, sparse("radial"))))


def test_a_tail_gives_way_to_rules_for_single_pairs(model):  # noqa: F811
    both = attach(attach(model, sparse("radial", tail="row")), UltraViCo(train_frames=NATIVE, alpha=0.6))
    assert torch.equal(sample(both), sample(attach(attach(model, sparse("radial")), UltraViCo(train_frames=NATIVE, alpha=0.6))))
    assert any("the pooled tail is off here: Longer Video (UltraViCo) sets rules" in e.reason for e in record_of(both).last.entries)
    tail, plain = (attach(model, sparse("radial", tail=t)) for t in ("row", "off"))
    assert not torch.equal(sample(tail), sample(plain))


def test_where_it_acts_and_where_not(model):  # noqa: F811
    few = attach(model, SparseAttention(Choice("radial", 0.3, block=4), min_tokens=500))
    assert torch.equal(sample(few), sample(model))
    assert any("288 tokens, fewer than min_tokens 500" in e.reason for e in record_of(few).last.entries)
    some = attach(model, sparse("radial", dense_blocks=BlockSelection.parse("0, -1")))
    sample(some)
    changed = sum(n for e, n in record_of(some).last.entries.items() if e.planned)
    assert changed == 2 * 2, "two of four blocks, two steps"
    assert any("dense_blocks '0, -1'" in e.reason for e in record_of(some).last.entries)
    off = attach(model, sparse("radial", density=1.0))
    assert record_of(off) is None


def test_two_patterns_replace_and_never_stack(model):  # noqa: F811
    twice = attach(attach(model, sparse("draft")), sparse("radial"))
    sample(twice)
    assert [label.split("_")[0] for label in record_of(twice).last.patterns] == ["radial"]


def test_a_pattern_without_meaning_is_refused_before_any_step(model):  # noqa: F811
    steps = []
    with pytest.raises(LoomError, match="radial .* frame"):
        sample(attach(model, sparse("radial")), shape=(1, 16, 1, 8, 8), callback=lambda *a: steps.append(a))
    assert steps == []


def test_after_an_interrupt_nothing_is_kept(model):  # noqa: F811
    import comfy.model_management

    def stop(step, *_):
        if step == 3:
            raise comfy.model_management.InterruptProcessingException

    patched = attach(model, sparse("adaspa", window=Window(0.0)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patched, NATIVE, steps=10, callback=stop)
    run = record_of(patched).last
    assert run.failed
    assert run.state == {}


def test_rettention_says_when_a_run_is_too_short(model):  # noqa: F811
    patched = attach(model, sparse("rettention"))
    assert (sample(patched, NATIVE, steps=4) - sample(model, NATIVE, steps=4)).abs().max() < 1e-3
    assert any("too few steps" in note for notes in record_of(patched).last.patterns.values() for note in notes)


def test_a_sampler_that_looks_ahead_and_comes_back_is_one_run(model):  # noqa: F811
    """heunpp2 asks at steps i, i+1, i+2, then again at i+1; what was searched stays."""
    import comfy.sample

    patched = attach(model, sparse("adaspa"))
    with torch.inference_mode():
        make = torch.Generator().manual_seed(1)
        positive, negative = ([[torch.randn(1, 24, 4096, generator=make), {}]] for _ in range(2))
        latent = torch.zeros(1, 16, NATIVE, 8, 8)
        comfy.sample.sample(patched, comfy.sample.prepare_noise(latent, 0), 20, 3.0, "heunpp2", "simple", positive, negative, latent, seed=0, disable_pbar=True)
    (notes,) = record_of(patched).last.patterns.values()
    assert notes["dense: search"] == notes["sparse: search"] == 2 * 4, "once for each conditioning in each of four blocks"


def test_every_control_video_has_a_memory_of_its_own():
    """VACE runs the same blocks once per control video: what one leaves behind must not reach the other."""
    host_inprocess.import_host()
    with torch.inference_mode():
        outs = []
        for frames in ([0.0, 1.0], [0.0], [1.0]):
            tiny = tiny_models.tiny("wan_vace")
            for cond in (tiny.positive, tiny.negative):
                videos = [torch.full((1, 32, 3, 4, 6), x) for x in frames]
                # of two the first one steers by nothing, so it must not matter
                cond[0][1].update(vace_frames=videos, vace_mask=[torch.ones(1, 64, 3, 4, 6)] * len(videos), vace_strength=[0.0, 1.0][-len(videos) :])
            outs.append(tiny_models.sample(attach(tiny.patcher, sparse("rettention")), tiny, steps=12))
        assert not torch.equal(outs[1], outs[2]), "or this test proves nothing"
        assert torch.equal(outs[0], outs[2])


def test_windows_that_wander_off_are_forgotten():
    """Some schedules of context windows move them with every step: what none of them will read again must not pile up."""
    memory, kept = Memory(), []
    for step in range(20):
        for frames in ((0, 1, 2), (step, step + 1, step + 2)):
            state = memory.state(frames, step / 20, 20)
            state["searched"] = state.get("searched", step)
        kept.append(len(memory.states))
    assert max(kept) == 4, "the one that stays and three that moved"
    assert memory.state((0, 1, 2), 0.95, 20)["searched"] == 0
    for progress in (0.1, 0.9):  # without a number of steps nothing can be called old
        memory.state((7,), progress, 0)
    assert len(memory.states) == 5


def test_what_the_share_cannot_be_is_said_during_the_run():
    """Only the calls themselves know how much text and how many references there are."""
    host_inprocess.import_host()
    with torch.inference_mode():
        tiny = tiny_models.tiny("flux_references")
        patched = attach(tiny.patcher, sparse("draft"))
        tiny_models.sample(patched, tiny)
        assert [w for w in record_of(patched).last.warnings if "belong to text and reference tokens" in w]
        patched = attach(tiny.patcher, sparse("sliding_tile", 0.1))
        tiny_models.sample(patched, tiny)
        warned = record_of(patched).last.warnings
        assert [w.split()[0] for w in warned if "density" in w] == ["sliding_tile", "92%"], "each once"


def test_one_sparse_pattern_per_call():
    from attention_loom.core.weave import Draft
    from attention_loom.kernels.builders import from_bool
    from attention_loom.kernels.order import raster

    order = raster(8, 4)
    plan = from_bool(torch.ones(2, 2, dtype=torch.bool), order, order)
    draft = Draft(None)
    draft.sparsify("A", plan)
    draft.sparsify("B", plan)
    with pytest.raises(ConflictError, match="A and B .* both choose which blocks are computed"):
        draft.plan()


def two_steps(model, mask, decay=None):  # noqa: F811
    """The pattern and the decay written down one after the other, N x N and in fp64, as another pack's override."""
    clone = model.clone()
    frames, per_frame = LONG, mask.shape[0] // LONG
    f = torch.arange(frames * per_frame) // per_frame
    far = (f[:, None] - f[None, :]).abs() > (NATIVE / 2 if decay else len(f))

    def override(func, q, k, v, heads, **kwargs):
        if k.shape[1] != len(f):
            return func(q, k, v, heads, **kwargs)
        q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        k = k - k.mean(2, keepdim=True)
        s = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        s = torch.where(far & (s > 0), (decay or 1.0) * s, s)
        return (s.masked_fill(~mask, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2).float()

    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("decay", [None, 0.6], ids=["alone", "with a decay"])
def test_the_whole_model_agrees_with_brute_force(model, backend, decay):  # noqa: F811
    from attention_loom.kernels.patterns.base import Tokens
    from attention_loom.kernels.patterns.fit import fit
    from attention_loom.kernels.reference import _read_pairs

    choice = Choice("radial", 0.3, block=32 if backend == "triton" else 4)
    pattern, _ = fit(choice, Tokens(LONG * 16, (LONG, 4, 4)))
    mask = _read_pairs(pattern.plan(Tokens(LONG * 16, (LONG, 4, 4))))[0, 0]
    assert 0.1 < mask.float().mean() < 0.9
    ours = attach(model, SparseAttention(choice, min_tokens=0, backend=backend))
    if decay:
        ours = attach(ours, UltraViCo(train_frames=NATIVE, alpha=decay, backend=backend))
    steps = {"steps": 1, "cfg": 1.0} if backend == "triton" else {}
    got, truth, stock = sample(ours, **steps), sample(two_steps(model, mask, decay), **steps), sample(model, **steps)
    assert (got - truth).abs().max() < 2e-4
    assert (stock - truth).abs().max() > 20 * (got - truth).abs().max(), "the pattern must matter, or this test proves nothing"


@pytest.mark.parametrize(("sparse_ms", "stays"), [(5.0, True), (9.9, False)])
def test_where_sparse_is_not_faster_the_rest_of_the_run_is_dense(model, monkeypatch, sparse_ms, stays):  # noqa: F811
    """The contest runs on a GPU only; here its clock is ours, everything else is real."""
    from attention_loom.core.race import Race

    took = iter([sparse_ms, 10.0] * 99)

    def clock(work):
        return work(), next(took)

    def contest(self, call, pattern, tokens):
        return call.run.kept(("race", tokens), lambda: Race(clock))

    monkeypatch.setattr(SparseAttention, "_race", contest)
    patched = attach(model, sparse("radial"))
    sample(patched, steps=3)
    run = record_of(patched).last
    changed = run.touched[SparseAttention.owner]
    assert changed == (12 if stays else 3), "four blocks, three steps; the third call decides"
    said = [e.reason for e in run.entries if "measured: sparse 9.90 ms, dense 10.00 ms" in e.reason]
    assert bool(said) is not stays
    assert all("dense is as fast here" in reason for reason in said)


@pytest.mark.parametrize("decayed", [False, True])
def test_the_contest_is_against_what_the_call_would_be_without_it(model, monkeypatch, decayed):  # noqa: F811
    """Beside another method dense is not stock: it is that method alone."""
    from attention_loom.core.race import Race

    timed = []

    def clock(work):
        timed.append(work())
        return timed[-1], 5.0 * len(timed)

    contest = Race(clock)
    monkeypatch.setattr(SparseAttention, "_race", lambda self, call, pattern, tokens: contest)
    patched, decay = attach(model, sparse("radial")), UltraViCo(train_frames=NATIVE, alpha=0.2)
    seen, attend = [], woven.attend

    def watched(q, k, v, plan, **more):
        seen.append(tuple(sorted(plan.features)))
        return attend(q, k, v, plan, **more)

    monkeypatch.setattr(woven, "attend", watched)
    sample(attach(patched, decay) if decayed else patched, steps=1)
    assert len(timed) == 2
    assert ("modulation",) in seen if decayed else set(seen) == {("blocks",)}


def test_an_extra_pass_with_skipped_layers_has_a_memory_of_its_own(model):  # noqa: F811
    """Skip-layer guidance evaluates the positive conditioning twice a step, the second time without a block."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    def memories(patched):
        found = []

        def look(*_):
            found.append(len([k for k in record_of(patched).current.state if k[0] == "sparse"]))

        sample(patched, NATIVE, steps=10, callback=look)
        return found[-1]

    plain = attach(model, sparse("rettention", window=Window(0.2)))
    guided = SkipLayerGuidanceDiT.execute(plain, scale=1.0, start_percent=0.0, end_percent=1.0, double_layers="2")[0]
    assert memories(plain) == 2 * 4, "both conditionings in four blocks"
    assert memories(guided) == 2 * 4 + 3, "and the positive one once more in the three blocks that are not skipped"
