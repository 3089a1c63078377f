"""SoftPAG on a tiny model of every family: off is off, the formula written out as matrices, and the host's own PAG."""

import math
import re

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.families import family_of
from attention_loom.core.methods.softpag import SoftPAG
from attention_loom.core.schedule import Window
from softpag_runs import by_hand, counted, explicit, softpag, watched

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
JOINT = ["flux", "flux_references", "flux2", "chroma", "sd3", "qwen_image", "qwen_image_edit", "lumina2", "z_image", "hunyuan_video", "hunyuan_video_15", "hunyuan_image", "mochi"]
JOINT += tiny_models.here("cogvideo", "cogvideo_15_i2v", "minimax_h3", "minimax_h3_references")
JOINT += ["hidream", "omnigen2", "omnigen2_references", "aura_flow", "chroma_radiance", *tiny_models.here("boogu", "boogu_references", "longcat_image_edit")]
JOINT += tiny_models.here("krea2_references", "ideogram4", "lens", "joyimage_edit", "mage_flow", "z_image_pixel", "pixeldit", "pid")
SELF = ["wan", "wan_fun_reference", "wan_vace", "wan_i2v", "ltx", "ltx_guides", "cosmos", "cosmos_predict2", "sd15", "svd"]
SELF += tiny_models.here("anima", "kandinsky5", "kandinsky5_image")


@pytest.fixture
def planned(monkeypatch):
    """Every call our backend executed: (q, k, v, plan, stock result, our result)."""
    return watched(monkeypatch)


# --- off ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 0.0}, {"u": 0.0}, {"heads": ""}, {"heads": "1@0", "u": 1.0}, {"window": Window(0.5, 0.5)}, {"sigma_start": 0.0, "sigma_end": 0.5},
        {"window": Window(0.999, 1.0)}, {"sigma_end": 1e9}, {"adaptive": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_off_costs_no_evaluation_and_changes_nothing(settings):
    model = tiny_models.tiny("sd3")
    patched, seen = counted(attach(model.patcher, softpag(**settings)))
    assert torch.equal(tiny_models.sample(model.patcher, model), tiny_models.sample(patched, model))
    assert seen == [((1, 0), False)] * 2


def test_one_extra_evaluation_per_guided_step_and_none_outside():
    model = tiny_models.tiny("sd3")
    patched, seen = counted(attach(model.patcher, softpag(window=Window(0.0, 0.5))))
    tiny_models.sample(patched, model, steps=4)
    assert [extra for _, extra in seen] == [False, True, False, True, False, False]
    assert record_of(patched).last.passes == {SoftPAG.owner: 2}
    assert "2 extra evaluations of the model" in record_of(patched).last.text()
    assert record_of(patched).last.touched == {SoftPAG.owner: 2 * 3}


def test_the_main_pass_and_the_model_are_as_before():
    model = tiny_models.tiny("flux")
    spied = []
    stock, patched = model.patcher.clone(), attach(model.patcher, softpag(u=1.0))
    for clone in (stock, patched):
        clone.set_model_sampler_post_cfg_function(lambda a: (spied.append((a["cond_denoised"], a["uncond_denoised"])), a["denoised"])[1])
    before = tiny_models.sample(stock, model, steps=1)
    assert not torch.equal(before, tiny_models.sample(patched, model, steps=1))
    assert all(torch.equal(a, b) for a, b in zip(*spied, strict=True))
    assert torch.equal(before, tiny_models.sample(stock, model, steps=1))


# --- the formula ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOINT + SELF)
def test_chosen_heads_of_one_block_are_mixed_in_every_family(name, planned):
    model = tiny_models.tiny(name)
    diffusion = model.patcher.get_model_object("diffusion_model")
    family = family_of(diffusion)
    blocks = family.blocks(diffusion)
    assert {family.heads(diffusion, b) for b in blocks} == {model.facts.heads}
    assert family.joint == (name in JOINT)
    head = model.facts.heads - 1
    patched, seen = counted(attach(model.patcher, softpag(f"-1:{head}", u=0.3)))
    out = tiny_models.sample(patched, model, steps=1, cfg=1.0)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, tiny_models.sample(model.patcher, model, steps=1, cfg=1.0))
    assert [extra for _, extra in seen] == [False, True]
    assert len(planned) == sum(f"{blocks[-1]} {kind}:" in call for call in model.facts.calls(5) for kind in ("self", "joint"))
    for _, _, v, _, stock, ours in planned:
        change = (ours - stock)[:, head]
        value = v[:, head * v.shape[1] // model.facts.heads]
        assert torch.allclose(change, 0.3 * (value - stock[:, head]), atol=1e-5)
        assert torch.equal(ours[:, :head], stock[:, :head])


PARTED = ["flux_references", "sd3", "z_image", "hunyuan_video_15", "hidream", "omnigen2_references", "aura_flow"]
PARTED += tiny_models.here("boogu_references", "cogvideo", "minimax_h3_references")


@pytest.mark.parametrize("name", PARTED)
@pytest.mark.parametrize("rows", ["image_rows", "image_image"])
def test_text_rows_keep_their_attention(name, rows, planned):
    model = tiny_models.tiny(name)
    tiny_models.sample(attach(model.patcher, softpag(u=1.0, rows=rows)), model, steps=1, cfg=1.0)
    places = [line.split(": ")[1].split() for line in model.facts.calls(5) if " joint:" in line]
    assert planned
    joint = [p for p in planned if p[0].shape[2] == sum(length_of(s) for s in places[0])]
    assert len(joint) == len(places)
    for (_, _, _, _, stock, ours), spans in zip(joint, places, strict=True):
        picture = torch.cat([torch.full((length_of(s),), s.startswith(("image", "video", "reference"))) for s in spans])
        changed = (ours != stock).any(-1).any(0).all(0)
        assert torch.equal(changed, picture)


def length_of(span):
    """Tokens of a span as tiny_models writes them: text5, image1x2x3."""
    return math.prod(int(n) for n in re.findall(r"\d+", span))


FORMS = [
    ("identity", "all"),
    ("identity", "image_rows"),
    ("identity", "image_image"),
    ("uniform", "all"),
    ("uniform", "image_rows"),
    ("query mean", "all"),
    ("query mean", "image_rows"),
    ("max", "all"),
]


@pytest.mark.parametrize("name", ["flux", "sd3"])
@pytest.mark.parametrize(("target", "rows"), FORMS)
def test_every_target_is_the_matrix_written_out(name, target, rows):
    model = tiny_models.tiny(name)
    truth = by_hand(model.patcher, 2.0, lambda q, k, v, text: explicit(q, k, v, text, target, rows, 0.6))
    ours = attach(model.patcher, softpag(scale=2.0, u=0.6, target=target, rows=rows))
    want, got, stock = (tiny_models.sample(m, model, steps=1) for m in (truth, ours, model.patcher))
    assert (got - want).abs().max() < 2e-5 * want.abs().max()
    assert (stock - want).abs().max() > 100 * (got - want).abs().max(), "the change must matter, or this test proves nothing"


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_samplers_with_and_without_cfg(sampler, cfg):
    model = tiny_models.tiny("sd3")
    truth = by_hand(model.patcher, 2.0, lambda q, k, v, text: explicit(q, k, v, text, "identity", "all", 0.6))
    patched, seen = counted(attach(model.patcher, softpag(scale=2.0, u=0.6)))
    want, got = (tiny_models.sample(m, model, steps=3, cfg=cfg, sampler=sampler) for m in (truth, patched))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert [extra for _, extra in seen] == [False, True] * (5 if sampler == "heun" else 3)
    assert {rows for rows, extra in seen if not extra} == {(0,) if cfg == 1.0 else (1, 0)}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_middle_block_at_one_is_the_hosts_own_pag(name):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    model = tiny_models.tiny(name)
    host = PerturbedAttentionGuidance.execute(model.patcher, 2.5).result[0]
    ours = attach(model.patcher, softpag("m0", scale=2.5, u=1.0))
    want = tiny_models.sample(host, model)
    assert torch.equal(want, tiny_models.sample(ours, model))
    assert not torch.equal(want, tiny_models.sample(model.patcher, model))


def test_three_chunks_in_one_batch_give_the_same():
    """Unconditional, conditional and perturbed in one forward, the third chunk changed: the two-pass form to rounding."""
    import comfy.samplers

    model = tiny_models.tiny("flux")
    kept = []

    def override(func, q, k, v, heads, *args, **kwargs):
        out = func(q, k, v, heads, *args, **kwargs)
        rows = kwargs["transformer_options"]["cond_or_uncond"]
        third = torch.tensor([r == 2 for r in rows])[:, None, None]
        return torch.where(third, 0.4 * out + 0.6 * v.transpose(1, 2).flatten(2), out)

    def batch(args):
        cond, uncond = args["conds"]
        *main, extra = comfy.samplers.calc_cond_batch(args["model"], [cond, uncond, cond], args["input"], args["sigma"], args["model_options"])
        kept.append(extra)
        return main

    one = model.patcher.clone()
    one.model_options["transformer_options"]["optimized_attention_override"] = override
    one.set_model_sampler_calc_cond_batch_function(batch)
    one.set_model_sampler_post_cfg_function(lambda a: a["denoised"] + 2.0 * (a["cond_denoised"] - kept[-1]))
    one, seen = counted(one)
    want = tiny_models.sample(one, model)
    assert [sorted(rows) for rows, _ in seen] == [[0, 1, 2]] * 2
    got = tiny_models.sample(attach(model.patcher, softpag(scale=2.0, u=0.6)), model)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_naming_all_heads_one_by_one_is_the_layer_in_any_order():
    model = tiny_models.tiny("flux")
    first, *others = (tiny_models.sample(attach(model.patcher, softpag(text)), model) for text in ("1-2", "L1H0, L1H1, L2H0, L2H1", "L2H1 L1H1 L2H0 L1H0", "s0; s1:0-1"))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("name", "path"), [("wan", "blocks"), ("hunyuan_video", "single_blocks")])
def test_what_comes_before_the_first_chosen_block_is_the_stock_pass(name, path):
    model = tiny_models.tiny(name)
    blocks = getattr(model.patcher.get_model_object("diffusion_model"), path)
    seen = []
    hooks = [b.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone())) for b in blocks]
    end = blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    try:
        tiny_models.sample(attach(model.patcher, softpag("-1", u=1.0)), model, steps=1, cfg=1.0)
    finally:
        for hook in (*hooks, end):
            hook.remove()
    main, extra = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(a, b) for a, b in zip(main[:-1], extra[:-1], strict=True))
    assert not torch.equal(main[-1], extra[-1])
