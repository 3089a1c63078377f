"""SoftPAG that takes blocks over from the main pass: the same pictures from less work."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.guidance import EXTRA
from attention_loom.core.methods.ultravico import UltraViCo
from softpag_runs import softpag

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
LAST = {
    "flux": "-1",
    "sd3": "-1",
    "wan": "-1",
    "wan_vace": "-1",
    "wan_animate": "-1",
    "wan_humo": "-1",
    "qwen_image": "-1",
    "hunyuan_video": "-1",
    "ltx": "-1",
    "cosmos": "-1",
    "cosmos_predict2": "-1",
    "z_image": "-1",
    "mochi": "-1",
    "hidream": "-1",
    "omnigen2_references": "-1",
    "aura_flow": "-1",
    **dict.fromkeys(tiny_models.here("cogvideo", "kandinsky5"), "-1"),
    **dict.fromkeys(tiny_models.here("boogu_references"), "-1"),
    **dict.fromkeys(tiny_models.here("anima", "krea2_references", "ideogram4", "lens", "joyimage_edit", "mage_flow", "z_image_pixel", "pixeldit", "pid"), "-1"),
}


def reusing(settings):
    return replace(settings, reuse=True)


@pytest.mark.parametrize("name", LAST)
def test_blocks_taken_over_give_the_same_bit_for_bit_where_the_passes_are_alike(name):
    model = tiny_models.tiny(name)
    method = softpag(LAST[name], u=1.0)
    plain = tiny_models.sample(attach(model.patcher, method), model, cfg=1.0)
    patched = attach(model.patcher, reusing(method))
    assert torch.equal(plain, tiny_models.sample(patched, model, cfg=1.0))
    assert not record_of(patched).last.warnings


@pytest.mark.parametrize(("name", "path"), [("wan", "blocks"), ("sd3", "joint_blocks"), ("flux", "double_blocks"), ("hunyuan_video", "double_blocks")])
def test_blocks_taken_over_do_not_run(name, path):
    model = tiny_models.tiny(name)
    first = getattr(model.patcher.get_model_object("diffusion_model"), path)[0]
    inside = getattr(first, "img_attn", None) or getattr(first, "self_attn", None) or first.x_block
    watched = next(m for m in inside.modules() if isinstance(m, torch.nn.Linear) and m is not inside)
    ran = []
    hook = watched.register_forward_pre_hook(lambda module, args: ran.append(1))
    try:
        for method, times in ((softpag("-1"), 4), (reusing(softpag("-1")), 2)):
            ran.clear()
            tiny_models.sample(attach(model.patcher, method), model, steps=2, cfg=1.0)
            assert len(ran) == times
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan_video", "hidream", "omnigen2_references", "aura_flow"])
@pytest.mark.parametrize("prompts", [(5, 5), (5, 3)])
def test_blocks_taken_over_with_cfg_differ_by_rounding(name, prompts):
    video = name in ("wan", "hunyuan_video")
    model = tiny_models.tiny(name, prompts=prompts, latent=(1, 16, 5, 4, 6) if video else None)
    method = softpag("-1", u=1.0)
    base = attach(model.patcher, UltraViCo(alpha=0.5, train_frames=2)) if video else model.patcher
    plain, ours = (tiny_models.sample(attach(base, m), model) for m in (method, reusing(method)))
    assert torch.allclose(plain, ours, atol=2e-5)
    assert not torch.allclose(plain, tiny_models.sample(base, model), atol=1e-3)


def test_two_guidances_take_over_their_own_blocks():
    model = tiny_models.tiny("wan")
    pair = [softpag("0", u=1.0), softpag("-1", u=0.7)]

    def both(change):
        patcher = model.patcher
        for method in pair:
            patcher = attach(patcher, change(method))
        return tiny_models.sample(patcher, model, cfg=1.0), record_of(patcher).last

    plain, _ = both(lambda m: m)
    ours, run = both(reusing)
    assert torch.equal(plain, ours)
    assert any("reuse_prefix took no block over" in w for w in run.warnings)  # of the one that begins at the first block


def test_blocks_taken_over_in_context_windows_and_areas():
    import comfy.context_windows as windows

    model = tiny_models.tiny("wan", latent=(1, 16, 5, 4, 6))
    outs = []
    for method in (softpag("-1", u=1.0), reusing(softpag("-1", u=1.0))):
        patched = attach(model.patcher, method)
        patched.model_options["context_handler"] = windows.IndexListContextHandler(
            context_schedule=windows.get_matching_context_schedule("standard_static"),
            fuse_method=windows.get_matching_fuse_method("pyramid"),
            context_length=3,
            context_overlap=1,
            dim=2,
        )
        outs.append(tiny_models.sample(patched, model, steps=1, cfg=1.0))
    assert torch.equal(*outs)
    model = tiny_models.tiny("flux", latent=(1, 16, 8, 8))
    text, facts = model.positive[0]
    halves = [[text, facts | {"area": (4, 8, y, 0), "strength": 1.0}] for y in (0, 4)]
    model = model._replace(positive=[[text, facts], *halves])
    plain, ours = (tiny_models.sample(attach(model.patcher, m), model, cfg=1.0) for m in (softpag("-1", u=1.0), reusing(softpag("-1", u=1.0))))
    assert torch.allclose(plain, ours, atol=2e-5)


def test_what_a_controlnet_adds_between_blocks_stays_once():
    import comfy.controlnet

    model = tiny_models.tiny("flux")
    diffusion = model.patcher.get_model_object("diffusion_model")
    tokens = model.facts.grid[1] * model.facts.grid[2]
    add = torch.randn(len(diffusion.double_blocks) + len(diffusion.single_blocks), 1, tokens, diffusion.hidden_size, generator=torch.Generator().manual_seed(3))

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x, t, cond, batched_number, transformer_options):
            return {"input": list(add[: len(diffusion.double_blocks)]), "output": list(add[len(diffusion.double_blocks) :])}

        def get_models(self):
            return []

        def copy(self):
            return self

    context, more = model.positive[0]
    controlled = model._replace(positive=[[context, more | {"control": Control()}]])
    plain, ours = (tiny_models.sample(attach(model.patcher, m), controlled, cfg=1.0) for m in (softpag("-1", u=1.0), reusing(softpag("-1", u=1.0))))
    assert torch.equal(plain, ours)
    assert not torch.allclose(plain, tiny_models.sample(attach(model.patcher, softpag("-1", u=1.0)), model, cfg=1.0), atol=1e-3)


def test_nothing_is_taken_over_from_another_evaluation():
    """A pack that skips the main pass at some steps (a step cache) leaves nothing to take over."""
    import comfy.patcher_extension as extension

    model = tiny_models.tiny("wan")
    method = softpag("-1", u=1.0)
    outs = []
    for m in (method, reusing(method)):
        made, calls = attach(model.patcher, m), []

        def cached(executor, x, *args, calls=calls, **kwargs):
            if EXTRA not in args[4]:
                calls.append(1)
                if len(calls) == 2:
                    return x * 0.5
            return executor(x, *args, **kwargs)

        made.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "a_cache", cached)
        outs.append(tiny_models.sample(made, model, steps=3, cfg=1.0))
    assert torch.equal(*outs)


def test_u_nets_cannot_take_blocks_over():
    with pytest.raises(LoomError, match="reuse_prefix takes whole blocks over from the main pass, which SD 1.5 / SDXL does not allow; switch it off"):
        attach(tiny_models.tiny("sd15").patcher, reusing(softpag()))
