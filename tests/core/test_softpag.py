"""SoftPAG on a tiny model of every family: off is off, the formula written out as matrices, the host's own PAG, and company."""

import math
import re
from dataclasses import replace

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core import woven
from attention_loom.core.attach import attach, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.families import family_of
from attention_loom.core.guidance import EXTRA, Guidance
from attention_loom.core.heads import HeadSet
from attention_loom.core.methods.softpag import SoftPAG, head_mix
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.core.schedule import Window

pytestmark = pytest.mark.host
JOINT = ["flux", "flux_references", "flux2", "chroma", "sd3", "qwen_image", "qwen_image_edit", "lumina2", "z_image", "hunyuan_video", "hunyuan_video_15", "hunyuan_image", "mochi"]
SELF = ["wan", "wan_fun_reference", "wan_vace", "wan_i2v", "ltx", "ltx_guides", "cosmos", "cosmos_predict2", "sd15", "svd"]


@pytest.fixture(autouse=True)
def _host():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def softpag(heads="all", scale=3.0, u=0.5, **more):
    window, target, rows = more.pop("window", Window()), more.pop("target", "identity"), more.pop("rows", "all")
    return SoftPAG(HeadSet.parse(heads), u, target, rows, guidance=Guidance(scale, **more), window=window)


def counted(patcher):
    """A clone that counts model calls: (clone, list of cond_or_uncond and whether the call is an extra one)."""
    import comfy.patcher_extension as extension

    seen = []

    def wrap(executor, *args, **kwargs):
        options = args[5]
        seen.append((tuple(options["cond_or_uncond"]), EXTRA in options))
        return executor(*args, **kwargs)

    clone = patcher.clone()
    clone.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "test", wrap)
    return clone, seen


@pytest.fixture
def planned(monkeypatch):
    """Every call our backend executed: (q, k, v, plan, stock result, our result)."""
    seen, original = [], woven.attend

    def attend(q, k, v, plan, **more):
        out = original(q, k, v, plan, **more)
        seen.append((q, k, v, plan, more["dense"](q, k, v), out))
        return out

    monkeypatch.setattr(woven, "attend", attend)
    return seen


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


@pytest.mark.parametrize("name", ["flux_references", "sd3", "z_image", "hunyuan_video_15"])
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


def explicit(q, k, v, text, target, rows, u):
    """The attention with A' as a matrix, fp64; text: tokens in front."""
    n, d = q.shape[-2:]
    s = q.double() @ k.double().transpose(-1, -2) / d**0.5
    a, eye = s.softmax(-1), torch.eye(n, dtype=torch.float64)
    mixed = torch.arange(n) >= (0 if rows == "all" else text)
    if rows == "image_image":
        simple = s.masked_fill(~(eye.bool() | (torch.arange(n) < text)), float("-inf")).softmax(-1)
    elif target == "identity":
        simple = eye.expand_as(a)
    elif target == "uniform":
        simple = torch.full_like(a, 1 / n)
    elif target == "max":
        simple = torch.nn.functional.one_hot(s.argmax(-1), n).double()
    else:
        one = q.double()[..., mixed, :].mean(-2, keepdim=True)
        simple = (one @ k.double().transpose(-1, -2) / d**0.5).softmax(-1).expand_as(a)
    weights = torch.where(mixed[:, None], (1 - u) * a + u * simple, a)
    return (weights @ v.double()).float()


def by_hand(patcher, scale, change, text=5):
    """Guidance written once more: an override that computes ``change(q, k, v, text)`` in an extra pass of its own."""
    import comfy.samplers

    def override(func, q, k, v, heads, *args, **kwargs):
        def split(x):
            return x if kwargs.get("skip_reshape") else x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)

        q, k, v = split(q), split(k), split(v)
        return change(q, k, v, text if q.shape[2] > 6 else 0).transpose(1, 2).flatten(2)

    def post_cfg(args):
        options = dict(args["model_options"])
        options["transformer_options"] = dict(options["transformer_options"]) | {"optimized_attention_override": override}
        (extra,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + scale * (args["cond_denoised"] - extra)

    clone = patcher.clone()
    clone.set_model_sampler_post_cfg_function(post_cfg)
    return clone


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


# --- company --------------------------------------------------------------------------------------------------------


def one_step(model, *methods):
    """The denoised latent of the first step: Euler's only step ends on it."""
    patcher = model.patcher
    for method in methods:
        patcher = attach(patcher, method)
    return tiny_models.sample(patcher, model, steps=1)


def test_two_guidances_add_up_in_any_order():
    model = tiny_models.tiny("sd3")
    a, b = softpag("0", scale=2.0, u=0.4), softpag("1:1", scale=1.5, u=1.0, target="uniform")
    stock, only_a, only_b, both, turned, twice = (one_step(model, *m) for m in ((), (a,), (b,), (a, b), (b, a), (a, a)))
    assert torch.allclose(both, stock + (only_a - stock) + (only_b - stock), atol=1e-4)
    assert torch.allclose(both, turned, atol=1e-4)
    assert torch.allclose(twice, stock + 2 * (only_a - stock), atol=1e-4)
    assert (both - stock).abs().max() > 0.01


def test_it_adds_to_the_hosts_own_guidance_nodes():
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    model = tiny_models.tiny("sd15")
    ours = softpag("u0", u=1.0)
    stock, alone = one_step(model), one_step(model, ours)
    host = tiny_models.sample(PerturbedAttentionGuidance.execute(model.patcher, 2.0).result[0], model, steps=1)
    for both in (PerturbedAttentionGuidance.execute(attach(model.patcher, ours), 2.0).result[0], attach(PerturbedAttentionGuidance.execute(model.patcher, 2.0).result[0], ours)):
        assert torch.allclose(tiny_models.sample(both, model, steps=1), alone + host - stock, atol=1e-4 * float(host.abs().max()))


def test_other_methods_act_in_the_extra_pass_as_in_the_main_one(planned):
    model = tiny_models.tiny("wan")
    patched = attach(attach(model.patcher, UltraViCo(train_frames=2, alpha=0.3)), softpag("1"))
    tiny_models.sample(patched, model, steps=1, cfg=1.0)
    features = [sorted(p[3].features) for p in planned]
    assert features == [["modulation"], ["modulation"], ["modulation"], ["head_mix", "modulation"]]


@pytest.mark.parametrize("prompts", [(5, 3), (5, 5)], ids=["split", "batched"])
def test_split_and_batched_cfg(prompts):
    model = tiny_models.tiny("flux", prompts=prompts)
    truth = by_hand(model.patcher, 2.0, lambda q, k, v, text: explicit(q, k, v, text, "identity", "all", 0.6))
    patched, seen = counted(attach(model.patcher, softpag(scale=2.0, u=0.6)))
    want, got = (tiny_models.sample(m, model) for m in (truth, patched))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert seen[: len(seen) // 2] == ([((0,), False), ((1,), False), ((0,), True)] if prompts == (5, 3) else [((1, 0), False), ((0,), True)])


@pytest.mark.parametrize("name", ["flux", "sd15", "wan"])
def test_samples_of_a_batch_do_not_mix(name):
    model = tiny_models.tiny(name)
    two = model._replace(latent=torch.cat([model.latent, model.latent]))
    patched = attach(model.patcher, softpag(u=0.7, rescale=0.5))
    import comfy.sample

    noise = comfy.sample.prepare_noise(two.latent, 1)
    run = lambda n, latent: comfy.sample.sample(patched, n, 2, 3.0, "euler", "simple", model.positive, model.negative, latent, disable_pbar=True, seed=1)  # noqa: E731
    both = run(noise, two.latent)
    for i in range(2):
        alone = run(noise[i : i + 1], model.latent)
        assert (both[i : i + 1] - alone).abs().max() < 1e-4 * alone.abs().max()


def test_area_conditioning():
    """Two prompts, one of them for the left half only: the extra pass has the same areas."""
    model = tiny_models.tiny("sd3", latent=(1, 16, 4, 8))
    (context, more), (other, _) = model.positive[0], model.negative[0]
    areas = [[context, more], [other, more | {"area": (4, 4, 0, 0), "strength": 2.0}]]
    model = model._replace(positive=areas)
    truth = by_hand(model.patcher, 2.0, lambda q, k, v, text: explicit(q, k, v, 5, "identity", "all", 0.6))
    patched, seen = counted(attach(model.patcher, softpag(scale=2.0, u=0.6)))
    want, got = (tiny_models.sample(m, model, steps=1) for m in (truth, patched))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert sum(extra for _, extra in seen) == 2, "one model call per area"


def test_a_controlnet_comes_along():
    import comfy.controlnet

    asked = []

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x, t, cond, batched_number, transformer_options):
            asked.append(EXTRA in transformer_options)
            return {"input": [], "middle": [], "output": []}

        def get_models(self):
            return []

        def copy(self):
            return self

    model = tiny_models.tiny("sd15")
    (context, more), control = model.positive[0], Control()
    model = model._replace(positive=[[context, more | {"control": control}]])
    out = one_step(model, softpag("m0"))
    assert torch.isfinite(out).all()
    assert True in asked
    assert False in asked


def test_a_step_without_a_prompt_has_nothing_to_push():
    model = tiny_models.tiny("flux")
    (context, more) = model.positive[0]
    late = model._replace(positive=[[context, more | {"start_percent": 0.6, "end_percent": 1.0}]])
    patched, seen = counted(attach(model.patcher, softpag()))
    out = tiny_models.sample(patched, late, steps=8)
    assert torch.isfinite(out).all()
    prompted = sum(0 in rows for rows, extra in seen if not extra)
    assert 0 < prompted < 8
    assert sum(extra for _, extra in seen) == prompted


def test_context_windows():
    import comfy.context_windows as windows

    model = tiny_models.tiny("wan", latent=(1, 16, 5, 4, 6))
    patched, seen = counted(attach(model.patcher, softpag("1")))
    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=3,
        context_overlap=1,
        dim=2,
    )
    patched.model_options["context_handler"] = handler
    assert torch.isfinite(tiny_models.sample(patched, model, steps=1)).all()
    assert [extra for _, extra in seen] == [False] * 2 + [True] * 2


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("sd3", {"heads": "2"}, "'2' names no block of this model: SD3 has 2 blocks, 0 to 1 in order .double 0 to 1."),
        ("sd3", {"heads": "L1H2"}, "'L1H2' names head 2, and double 1 .block 1 in order. has heads 0 to 1"),
        ("sd15", {"heads": "u9"}, "'u9' names no block"),
        ("flux", {"heads": '{"family": "SD3", "blocks": 24, "heads_per_block": 24, "heads": ["L0H0"]}'}, "found on SD3 with 24 blocks of 24 heads"),
        ("wan", {"rows": "image_image"}, "rows image_image needs attention over text and picture together, and Wan reads its text apart"),
        ("sd15", {"rows": "image_image"}, "SD 1.5 / SDXL reads its text apart"),
        ("flux", {"u": 1.5}, "u 1.5 was given"),
        ("flux", {"u": float("nan")}, "u nan was given"),
        ("flux", {"target": "blur"}, "target 'blur' was given"),
        ("flux", {"rows": "text"}, "rows 'text' was given"),
        ("flux", {"rows": "image_image", "target": "max"}, "rows image_image is a form of the identity"),
    ],
)
def test_what_cannot_work_is_refused_when_the_node_runs(name, settings, words):
    with pytest.raises(LoomError, match=words):
        attach(tiny_models.tiny(name).patcher, softpag(**settings))


def test_an_extra_pass_that_reaches_nothing_is_an_error():
    model = tiny_models.tiny("sd15")
    patched = attach(model.patcher, softpag("m0"))
    patched.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    with pytest.raises(LoomError, match=r"could not change any attention in its extra pass \(middle 0.0\): another node replaces"):
        tiny_models.sample(patched, model)


def test_blocks_it_does_not_reach_are_reported():
    model = tiny_models.tiny("sd15")
    patched = attach(model.patcher, softpag("m0, u0"))
    patched.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    tiny_models.sample(patched, model, steps=1)
    assert any("did not reach middle 0.0" in w for w in record_of(patched).last.warnings)


def test_merged_tokens_of_a_unet_count_as_picture():
    from attention_loom.core.call import Span, TokenLayout

    merged = TokenLayout((Span("other", 7),))
    assert head_mix((0.5, 0.0), "identity", "image_rows", merged, "cpu").rows is None


# --- blocks taken over from the main pass ---------------------------------------------------------------------------

LAST = {"flux": "-1", "sd3": "-1", "wan": "-1", "wan_vace": "-1", "qwen_image": "-1", "hunyuan_video": "-1", "ltx": "-1", "cosmos_predict2": "-1", "z_image": "-1", "mochi": "-1"}


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


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan_video"])
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
