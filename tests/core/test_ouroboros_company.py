"""An endless clip beside methods of the pack and guidance of other nodes: what each sees of the queue's windows."""

import host_inprocess
import pytest
import torch

pytestmark = pytest.mark.host
host_inprocess.import_host()

import comfy.patcher_extension as extension  # noqa: E402
from endless import Calls, clip_of, make, schedule  # noqa: E402
from tiny_models import tiny  # noqa: E402


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def test_calls_tell_their_frames_and_a_sigma_inside_the_window():
    model = tiny("wan")
    calls = Calls(model.patcher)
    make(model, 4, patcher=calls.patcher, cfg=1.0, latent=clip_of(model))
    per_iteration = 4
    last = calls.options[-per_iteration:]
    # iteration 6 (the 7th): slot 1 leaves as frame 3; windows from the noisy end read slots 4-6, 3-5, 1-3, 0-2
    assert [tuple(o["context_window"].index_list) for o in last] == [(6, 7, 8), (5, 6, 7), (3, 4, 5), (2, 3, 4)]
    assert [o["loom_queue"].number for o in last] == [3, 2, 1, 0]
    levels = schedule(model.patcher, 6).flip(0)[1:]
    assert [float(o["sigmas"][0]) for o in last] == pytest.approx([float(levels[i]) for i in (4, 3, 1, 0)])
    assert min(min(o["context_window"].index_list) for o in calls.options) == 0


@pytest.mark.parametrize("name", ["wan", "svd"])
def test_percent_windows_read_the_median_level_of_a_window(name):
    """Also where frames are batch rows, each with a level of its own, as in Stable Video Diffusion."""
    from attention_loom.core.attach import attach
    from observing import Observer

    model, observer = tiny(name), Observer()
    make(model, 2, patcher=attach(model.patcher, observer), cfg=1.0, latent=clip_of(model))
    levels = [0.0, *schedule(model.patcher, 6).flip(0)[1:].tolist()]
    medians = {round(sorted(levels[s : s + 3])[1], 4) for s in range(len(levels) - 2)} | {round(levels[0], 4), round(levels[1], 4)}
    assert {round(call.sigma, 4) for call in observer.seen} <= medians
    assert max(call.sigma for call in observer.seen) < levels[-1]


def test_methods_act_in_every_window():
    """UltraViCo on a queue: its decay reaches each call, with percent windows read at the window's own level."""
    from attention_loom.core.attach import attach, record_of
    from attention_loom.core.methods.ultravico import UltraViCo
    from attention_loom.core.schedule import Window

    model = tiny("wan")
    stock = make(model, 3)
    whole = attach(model.patcher, UltraViCo(train_frames=2, alpha=0.5))
    out = make(model, 3, patcher=whole)
    assert not torch.equal(out, stock)
    early = attach(model.patcher, UltraViCo(train_frames=2, alpha=0.5, window=Window(0.0, 0.3)))
    part = make(model, 3, patcher=early)
    assert not torch.equal(part, stock) and not torch.equal(part, out)
    acted = [sigma for (_, _, sigma), outcomes in record_of(early).last.cells.items() if "UltraViCo" in "".join(outcomes)]
    top = max(schedule(model.patcher, 6).tolist())
    assert acted and all(float(sigma) > 0.5 * top for sigma in acted)


def test_rescaled_guidance_is_computed_per_frame():
    """A guidance function of another node sees each frame as a row with its own sigma."""
    model = tiny("wan")
    patcher = model.patcher.clone()
    seen = []

    def guide(args):
        seen.append((tuple(args["cond"].shape), args["timestep"].tolist()))
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

    patcher.set_model_sampler_cfg_function(guide)
    out = make(model, 2, patcher=patcher, latent=clip_of(model))
    assert torch.allclose(out, make(model, 2, latent=clip_of(model)), atol=1e-5)
    assert seen[0][0] == (3, 16, 1, 4, 6)
    assert seen[0][1] == pytest.approx(schedule(model.patcher, 6).flip(0)[4:].tolist())


@pytest.mark.parametrize("when", ["pre", "post"])
def test_guidance_before_and_after_cfg_is_computed_per_frame(when):
    """Functions that depend on norms (CFG-Zero*, TCFG, APG) must not mix frames of different levels."""
    model = tiny("wan")
    patcher, seen = model.patcher.clone(), []

    def evened(x):
        return x / x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))

    def guide(args):
        given = args["conds_out"] if when == "pre" else [args["denoised"]]
        seen.append((tuple(given[0].shape), args["sigma"].tolist()))
        made = [evened(x) for x in given]
        return made if when == "pre" else made[0]

    getattr(patcher, f"set_model_sampler_{when}_cfg_function")(guide)
    out = make(model, 2, patcher=patcher, latent=clip_of(model), cfg=3.0)
    assert bool(out.isfinite().all())
    assert {shape for shape, _ in seen} == {(3, 16, 1, 4, 6)}
    assert seen[0][1] == pytest.approx(schedule(model.patcher, 6).flip(0)[4:].tolist())


def test_guidance_that_calls_the_model_sees_the_window_whole():
    """As perturbed-attention guidance of the host does: the model knows no single frames."""
    import comfy.samplers

    model = tiny("wan")
    patcher, seen = model.patcher.clone(), []

    def guide(args):
        again = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"])[0]
        seen.append(tuple(args["denoised"].shape))
        return args["denoised"] + 0.5 * (args["cond_denoised"] - again)

    patcher.set_model_sampler_post_cfg_function(guide)
    out = make(model, 2, patcher=patcher, latent=clip_of(model))
    assert torch.allclose(out, make(model, 2, latent=clip_of(model)), atol=1e-4)  # the same prediction again pushes nowhere
    assert seen and set(seen) == {(1, 16, 3, 4, 6)}


def test_rescaled_head_guidance_counts_each_frame_by_itself(monkeypatch):
    from attention_loom.core.guidance import Guidance
    from attention_loom.nodes.softpag import LoomSoftPAG

    model, seen = tiny("wan"), []
    join = Guidance.join
    monkeypatch.setattr(Guidance, "join", lambda self, w, *parts: (seen.append({tuple(p.shape) for p in parts if p is not None}), join(self, w, *parts))[1])
    patcher = LoomSoftPAG.execute(model=model.patcher, preset="auto", scale=3.0, u=1.0, rescale=1.0).result[0]
    out = make(model, 2, patcher=patcher)
    assert bool(out.isfinite().all()) and seen and all(shapes == {(3, 16, 1, 4, 6)} for shapes in seen)


def test_a_guidance_method_of_the_pack_acts_too():
    from attention_loom.nodes.softpag import LoomSoftPAG

    model = tiny("wan")
    patcher = LoomSoftPAG.execute(model=model.patcher, preset="auto", scale=3.0, u=1.0).result[0]
    out = make(model, 2, patcher=patcher)
    assert bool(out.isfinite().all()) and not torch.equal(out, make(model, 2))


def test_patterns_with_a_history_keep_no_more_as_the_clip_grows():
    from attention_loom.core.attach import record_of
    from attention_loom.nodes.sparse import LoomSparseAttention

    model = tiny("wan")
    kept = []
    for frames in (4, 12):
        patcher = LoomSparseAttention.execute(
            model=model.patcher, pattern="adaspa", density=0.5, start_percent=0.0, dense_blocks="", min_tokens=0, block_size="4", measure=False
        ).result[0]
        sizes = []

        def count(executor, *args, patcher=patcher, sizes=sizes, **kwargs):
            run = record_of(patcher).current
            sizes.append(sum(len(m.states) for m in run.state.values() if hasattr(m, "states")))
            return executor(*args, **kwargs)

        patcher.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "zz_test", count)
        make(model, frames, patcher=patcher)
        kept.append(max(sizes))
    assert kept[0] == kept[1] > 0


def test_what_a_pattern_learned_is_dropped_when_the_window_has_new_content():
    from attention_loom.core.call import QueueWindow
    from attention_loom.core.methods.sparse import Memory

    memory = Memory()
    windows = [QueueWindow(1, 4, (i, i + 1), i, i // 2) for i in range(4)]
    states = [memory.state(w.frames, 0.3, 6, w) for w in windows]
    assert states[0] is states[1] and states[2] is states[3] and states[1] is not states[2]
    assert len(memory.states) == 1
