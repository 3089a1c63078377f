"""Family adapters beside what else runs on these models: context windows, references, guides, other packs' patches."""

from dataclasses import dataclass

import later_hosts
import pytest
import torch
from attention_loom.core.attach import attach
from observing import STEPS, Observer, observe, sentence, understood, words
from tiny_models import sample as run
from tiny_models import tiny

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


def test_wan_context_windows_tell_their_frames():
    import comfy.context_windows as windows

    model = tiny("wan", latent=(1, 16, 6, 4, 6))
    patcher = model.patcher.clone()
    handler = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD), windows.get_matching_fuse_method(windows.ContextFuseMethods.FLAT),
        context_length=4, context_overlap=2, dim=2,
    )  # fmt: skip
    patcher.model_options["context_handler"] = handler
    windows.create_prepare_sampling_wrapper(patcher)
    out, calls, record = observe(model, patcher)
    assert torch.equal(out, run(patcher, model, STEPS)) and understood(record)
    anchored = getattr(handler, "causal_window_fix", False)  # later hosts put the frame before a window in front of it
    assert {c.frames for c in calls} == {(0, 1, 2, 3), (1, 2, 3, 4, 5) if anchored else (2, 3, 4, 5)}
    assert all(c.q.grid == (len(c.frames), 2, 3) and len(c.frames) == 4 + c.lead for c in calls)


def test_wan_with_latents_in_its_context():
    if not later_hosts.wan_takes_latents_in_context():
        pytest.skip("this host's Wan takes no latents in context")
    model = tiny("wan")
    for cond in (model.positive, model.negative):
        cond[0][1].update(context_latents=[torch.ones(1, 16, 1, 4, 4), torch.ones(1, 16, 2, 3, 4)])
    out, calls, record = observe(model)
    assert torch.equal(out, run(model.patcher, model, STEPS)) and understood(record)
    assert not torch.equal(out, run(model.patcher, tiny("wan"), STEPS))
    assert {words(c.q) for c in calls} == {"video3x2x3 other4 other8"}


def test_ltx_guides_of_their_own_strength_stay_stock_and_are_reported():
    """The host then runs self-attention in parts: the video's queries, then the guides'."""
    import comfy.ldm.lightricks.model

    if not hasattr(comfy.ldm.lightricks.model, "GuideAttentionMask"):
        pytest.skip("this host runs its self-attention whole")
    model = tiny("ltx_guides")
    for cond in (model.positive, model.negative):
        cond[0][1].update(guide_attention_entries=[{"pre_filter_count": 6, "strength": 0.5, "pixel_mask": None, "latent_shape": (1, 2, 3)}])
    stock = run(model.patcher, model, STEPS)
    assert not torch.equal(stock, run(model.patcher, tiny("ltx_guides"), STEPS))
    out, calls, record = observe(model)
    assert torch.equal(out, stock)
    assert {e.reason for e in record.entries if e.kind == "call not understood"} >= {
        f"block {i} self: 18 of 24 queries, as the host runs it in parts where guides have strengths of their own" for i in range(2)
    }
    assert {sentence(c) for c in calls} == {f"block {i} cross: video3x2x3 reference6 | text5" for i in range(2)}


def test_ltx_guide_tokens_that_are_masked_out_are_not_counted():
    model = tiny("ltx_guides")
    if "concat_mask" not in model.positive[0][1]:
        pytest.skip("this host drops no guide tokens")
    mask = torch.ones(1, 1, 4, 2, 3)
    mask[:, :, 3, :, 1:] = -1
    for cond in (model.positive, model.negative):
        cond[0][1].update(concat_mask=mask)
    out, calls, record = observe(model)
    assert torch.equal(out, run(model.patcher, model, STEPS)) and understood(record)
    assert {words(c.q) for c in calls} == {"video3x2x3 reference2"}


def test_wan_ti2v_with_a_fixed_first_frame():
    """A noise mask gives every frame a timestep of its own; the layout stays."""
    model = tiny("wan_ti2v")
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[:, :, 0] = 0
    out, calls, record = observe(model, noise_mask=mask)
    assert torch.equal(out, run(model.patcher, model, STEPS, noise_mask=mask)) and understood(record)
    assert {words(c.q) for c in calls} == {"video3x2x3"}


def test_vace_runs_its_blocks_once_per_control_video():
    model = tiny("wan_vace")
    for cond in (model.positive, model.negative):
        frames = torch.zeros(1, 32, 3, 4, 6)
        cond[0][1].update(vace_frames=[frames, frames], vace_mask=[torch.ones(1, 64, 3, 4, 6)] * 2, vace_strength=[1.0, 0.5])
    _, calls, record = observe(model)
    assert understood(record)
    assert [str(c.block) for c in calls][: len(calls) // STEPS] == ["block 0"] * 2 + ["vace 0"] * 4 + ["block 1"] * 2


def test_flux_style_tokens_in_front_of_the_prompt():
    """The host's style reference joins its picture tokens to the prompt inside the model."""
    model = tiny("flux")

    def style(args):
        for key, width in (("txt", 64), ("txt_ids", 3)):
            args[key] = torch.cat([torch.zeros(args[key].shape[0], 7, width), args[key]], dim=1)
        return args

    patcher = model.patcher.clone()
    patcher.set_model_patch(style, "post_input")
    _, calls, record = observe(model, patcher)
    assert understood(record)
    assert {words(c.q) for c in calls} == {"other7 text5 image1x2x3"}
    assert {c.q.range("text") for c in calls} == {(7, 12)}


def test_attention_of_a_guest_module_is_nobodys_business():
    """A pack that runs attention of its own inside a transformer layer or before the blocks, and hands on the options."""
    from comfy.ldm.modules.attention import optimized_attention

    unet, hunyuan = tiny("sd15"), tiny("hunyuan_video")
    q, k = torch.randn(1, 3, 64), torch.randn(1, 4, 64)
    inside = unet.patcher.clone()
    inside.set_model_patch(lambda x, extra: (optimized_attention(q, k, k, heads=8, transformer_options=extra), x)[1], "middle_patch")

    def before(executor, *args, **kwargs):
        options = next(a for a in args if isinstance(a, dict) and "sigmas" in a)
        optimized_attention(q, k, k, heads=8, transformer_options=options)
        return executor(*args, **kwargs)

    outside = hunyuan.patcher.clone()
    outside.add_wrapper("diffusion_model", before)
    for model, patcher in ((unet, inside), (hunyuan, outside)):
        _, calls, record = observe(model, patcher)
        assert understood(record)
        guests = [c for c in calls if c.block.kind == "outside"]
        assert guests and {sentence(c).split(" ", 2)[2] for c in guests} == {"other: other3 | other4"}
        own = [sentence(c) for c in calls if c not in guests][: len(calls) // STEPS]
        if model is unet:
            assert own[: len(model.facts.calls(5))] == model.facts.calls(5)


def test_unet_tokens_merged_by_another_pack_are_not_guessed():
    """A pack that halves the tokens (ToMe): its calls stay stock and the report says why."""
    model = tiny("sd15")
    patcher = model.patcher.clone()
    patcher.set_model_attn1_patch(lambda n, context, value, extra: (n[:, ::2], n[:, ::2], n[:, ::2]))
    patcher.set_model_attn1_output_patch(lambda n, extra: n.repeat_interleave(2, dim=1))
    out, calls, record = observe(model, patcher)
    assert torch.equal(out, run(patcher, model, STEPS))
    assert {c.kind for c in calls} == {"cross"}
    reasons = {e.reason for e in record.entries if e.kind == "call not understood"}
    assert "input 1.0 self: 12 queries, but the tokens known make 24" in reasons


def test_sd3_blocks_do_not_run_under_gradient_checkpointing(monkeypatch):
    import torch.utils.checkpoint

    model = tiny("sd3")
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: pytest.fail("a block ran under checkpointing"))
    observe(model)


def test_two_methods_share_one_set_of_block_marks():
    """A second method on the same chain does not wrap the blocks again."""
    model = tiny("z_image")
    first, second = Observer(), Other()
    patched = attach(attach(model.patcher, first), second)
    out = run(patched, model, STEPS)
    assert torch.equal(out, run(model.patcher, model, STEPS))
    assert [sentence(c) for c in first.seen] == [sentence(c) for c in second.seen] != []
    once = attach(model.patcher, first)
    assert patched.object_patches.keys() == once.object_patches.keys()


@dataclass(frozen=True)
class Other(Observer):
    owner = "other observer"
