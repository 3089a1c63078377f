"""Space-time attention: regions, schedules, the formula in one layer against fp64, and whole runs on tiny real models."""

from dataclasses import replace

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.call import AttentionCall, Block, Span, TokenLayout
from attention_loom.core.errors import LoomError
from attention_loom.core.fade import Fade, keyframes
from attention_loom.core.methods.spacetime import Local, SpaceTime, auto_weight
from attention_loom.core.regions import Box, Disc, Drawn, Region, cover, middle, parse
from attention_loom.core.schedule import Window
from attention_loom.core.weave import Draft
from attention_loom.kernels import AttentionPlan, attend

OWNER = SpaceTime.owner
EVERYWHERE = Box(0.0, 0.0, 1.0, 1.0)
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)


def context(seed, width=768, n=5):
    return torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed))


def local(place, ctx, strength=1.0):
    return Local(Region("something", place, strength), ctx)


# --- regions ----------------------------------------------------------------------------------------------------------


def test_discs_of_the_paper_code():
    found = cover(Disc(0.5, 0.5, 0.2), 8, 8, legacy=True)
    for v in range(8):
        for u in range(8):
            assert found[v, u] == float((u / 8 - 0.5) ** 2 + (v / 8 - 0.5) ** 2 < 0.04)


def test_rows_follow_y_and_columns_follow_x():
    for legacy in (False, True):
        found = cover(Disc(0.8, 0.2, 0.15), 20, 20, legacy=legacy)
        v, u = found.nonzero().float().mean(0).tolist()
        assert u == pytest.approx(0.8 * 20, abs=0.6) and v == pytest.approx(0.2 * 20, abs=0.6)


def test_discs_are_centred_and_round_in_pixels():
    found = cover(Disc(0.5, 0.5, 0.25), 20, 60)
    assert torch.equal(found, found.flip(0)) and torch.equal(found, found.flip(1))
    assert found.any(0).sum() == found.any(1).sum() == 10
    oval = cover(Disc(0.5, 0.5, 0.25), 20, 60, legacy=True)
    assert oval.any(0).sum() > 2 * oval.any(1).sum()


def test_boxes_masks_and_their_middles():
    assert torch.equal(cover(LEFT, 4, 6) + cover(RIGHT, 4, 6), torch.ones(4, 6))
    mask = torch.zeros(40, 60)
    mask[0:10, 30:60] = 1
    painted = Drawn(mask)
    assert cover(painted, 4, 6).nonzero().tolist() == [[0, 3], [0, 4], [0, 5]]
    assert middle(painted, 4, 6) == (0, 4)
    assert middle(Disc(1.0, 0.0, 0.1), 4, 6) == (0, 5)


def test_softness_blurs_the_edge_only():
    hard, soft = cover(LEFT, 16, 16), cover(LEFT, 16, 16, softness=0.1)
    assert torch.allclose(soft.flip(1) + soft, torch.ones(16, 16), atol=0.02)
    assert soft[:, 0].min() > 0.98
    assert torch.equal(soft > 0.5, hard > 0.5)
    assert ((soft == 0) | (soft >= 0.01)).all()


def test_lines_are_read():
    masks = torch.zeros(2, 8, 8)
    masks[0, :4], masks[1, 4:] = 1, 1
    text = "a red fox @ left\n\n an owl @ 0.7 0.3 * 0.5\na lamp @ 0.5, 0.8, 0.1\na fence@0,0.6,1,0.9\na cat @ mask\nan e@mail sign @ mask 2 *2"
    found = parse(text, masks, 0.2)
    assert [r.text for r in found] == ["a red fox", "an owl", "a lamp", "a fence", "a cat", "an e@mail sign"]
    assert found[0].place == Disc(0.27, 0.5, 0.2) and found[1] == Region("an owl", Disc(0.7, 0.3, 0.2), 0.5)
    assert found[2].place == Disc(0.5, 0.8, 0.1) and found[3].place == Box(0, 0.6, 1, 0.9)
    assert found[5].strength == 2.0


@pytest.mark.parametrize(
    ("text", "masks", "words"),
    [
        ("a red fox", None, "'a red fox' has no place"),
        ("@ left", None, "'@ left' has no description"),
        ("a fox @ nowhere", None, "'nowhere' is no place"),
        ("a fox @ 0.5", None, "a place is x, y or"),
        ("a fox @ 0.5, 1.2", None, "all from 0 to 1"),
        ("a fox @ 0.5, 0.5, 0", None, "radius must be above 0"),
        ("a fox @ 0.6, 0, 0.5, 1", None, "a box is left, top, right, bottom"),
        ("a fox @ mask", None, "asks for mask 1 and 0 are connected"),
        ("a fox @ mask x", torch.ones(1, 4, 4), "write '@ mask' or '@ mask 2'"),
        ("a fox @ mask 3", torch.ones(2, 4, 4), "asks for mask 3 and 2 are connected"),
        ("a fox @ mask", torch.zeros(1, 4, 4), "mask 1 is empty"),
        ("a fox @ mask", torch.ones(2, 4, 4), "2 masks are connected and 1 are used"),
        ("a fox @ mask", torch.ones(1, 2, 4, 4), r"shape \(1, 2, 4, 4\)"),
        ("a fox @ left * -1", None, "strength -1; give 0 or more"),
        ("\n".join(["a @ left"] * 17), None, "17 regions were given and 16 fit"),
    ],
)
def test_lines_that_cannot_be_read(text, masks, words):
    with pytest.raises(LoomError, match=words):
        parse(text, masks, 0.2)


# --- schedules --------------------------------------------------------------------------------------------------------


def test_schedules():
    at = (0.0, 0.25, 0.5, 1.0)
    assert [Fade().at(p) for p in at] == [1, 1, 1, 1]
    assert [Fade("early", 0.5).at(p) for p in at] == [1, 1, 0, 0]
    assert [Fade("linear").at(p) for p in at] == [1, 0.75, 0.5, 0]
    assert [Fade("cosine").at(p) for p in at] == pytest.approx([1, 0.853553, 0.5, 0], abs=1e-6)
    assert [Fade("keyframes", points=keyframes("0.25:1, 0.5:0.5; 1:2")).at(p) for p in (*at, 0.375)] == [1, 1, 0.5, 2, 0.75]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0:1, half", "'half' is no keyframe"),
        ("0:1, 1.5:0", "places are 0"),
        ("0:-1", "weights are 0 or more"),
        ("0:nan", "weights are 0 or more"),
        ("0.5:1, 0.2:0", "write them in order"),
    ],
)
def test_keyframes_that_make_no_sense(text, words):
    with pytest.raises(LoomError, match=words):
        keyframes(text)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fade("slowly"), "'slowly' was given"),
        (lambda: Fade("keyframes"), "needs its points"),
        (lambda: Fade("early", 1.5), "until 1.5"),
        (lambda: SpaceTime(weight=-1.0), "weight of -1"),
        (lambda: SpaceTime(weight=float("inf")), "weight of inf"),
        (lambda: SpaceTime(softness=0.5), "softness 0.5"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(LoomError, match=words):
        make()


def test_weights_nobody_named():
    assert auto_weight("contrast", 2, 768) == 2.5
    assert auto_weight("affine", 4, 2048) == 0.5
    assert auto_weight("convex", 3, 768) == 0.6


def test_two_methods_are_never_taken_for_each_other():
    assert SpaceTime() != SpaceTime()


# --- one layer, against fp64 ------------------------------------------------------------------------------------------

H, D, GRID = 2, 8, (1, 8, 8)
WIDTH = 12


def layer(dtype=torch.float64, seed=0):
    """(projections of text, of the output with its bias, hidden rows per conditioning, contexts)."""
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    to_k, to_v, to_out, bias = make(H * D, WIDTH), make(H * D, WIDTH), make(6, H * D), make(6)
    return (
        (lambda c: (c.to(dtype) @ to_k.T, c.to(dtype) @ to_v.T)),
        (lambda o: o.transpose(1, 2).flatten(2) @ to_out.T + bias),
        make(2, H, 64, D),
        [make(1, 7, WIDTH) for _ in range(2)],
    )


def heads(x):
    return x.unflatten(-1, (H, D)).transpose(1, 2)


def call_of(project, rows, batch, dtype=torch.float64, progress=0.0):
    image = TokenLayout((Span("image", 64, GRID),))
    return AttentionCall(
        "SD 1.5 / SDXL", Block("input", 1), "cross", H, D, image, TokenLayout((Span("text", 7),)), 1.0, progress, rows, batch, torch.device("cpu"), dtype, project=project
    )


def run(method, rows=(1, 0), dtype=torch.float64, per=1):
    """(result after the loom, stock result), [B, H, N, D] in the order of rows; ``per`` equal elements per conditioning."""
    project, _, q, contexts = layer(dtype)
    k, v = (torch.cat([heads(project(contexts[row])[i]) for row in rows for _ in range(per)]) for i in range(2))
    queries = torch.cat([q[row : row + 1] for row in rows for _ in range(per)])
    draft = Draft(call_of(project, rows, len(rows) * per, dtype))
    if method is not None and method.wants(draft.call):
        method.contribute(draft.call, draft)
    dense = lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2) / D**0.5, -1) @ v  # noqa: E731
    return attend(queries, k, v, draft.plan(), dense=dense), attend(queries, k, v, AttentionPlan(), dense=dense)


def formula(method, rows=(1, 0)):
    """The spec's formula after the output projection, token by token."""
    project, out, q, contexts = layer()
    ca = lambda row, ctx: out(torch.softmax(q[row : row + 1] @ heads(project(ctx)[0]).transpose(-1, -2) / D**0.5, -1) @ heads(project(ctx)[1]))  # noqa: E731
    g = [ca(0, contexts[0]), ca(1, contexts[1])]
    base = g[1] if method.mode == "contrast" else g[0]
    masks = [cover(x.region.place, 8, 8).flatten()[None, :, None].double() * x.region.strength * method.weight for x in method.locals]
    total = sum(masks)
    if method.mode == "convex":
        masks = [m / total.clamp(min=1) for m in masks]
    g[0] = g[0] + sum(m * (ca(0, x.context) - base) for m, x in zip(masks, method.locals, strict=True))
    return torch.cat([g[row] for row in rows])


TWO = (local(Disc(0.3, 0.5, 0.3), context(1, WIDTH)), local(Disc(0.6, 0.5, 0.3), context(2, WIDTH), 0.7))


@pytest.mark.parametrize("mode", ["contrast", "affine", "convex"])
@pytest.mark.parametrize("rows", [(1, 0), (0, 1)], ids=["negative_first", "positive_first"])
def test_a_layer_is_the_formula_and_combining_before_the_output_projection_is_the_same(mode, rows):
    method = SpaceTime(locals=TWO, mode=mode, weight=2.5 if mode != "convex" else 0.8)
    ours, stock = run(method, rows)
    _, out, *_ = layer()
    assert torch.allclose(out(ours), formula(method, rows), atol=1e-5)
    assert torch.equal(ours[rows.index(1)], stock[rows.index(1)]), "the negative prompt is as before"
    assert not torch.allclose(ours, stock, atol=1e-3)


def test_tokens_outside_all_regions_keep_their_bits():
    ours, stock = run(SpaceTime(locals=TWO, weight=2.5), dtype=torch.float32)
    outside = sum(cover(x.region.place, 8, 8) for x in TWO).flatten() == 0
    assert 0 < outside.sum() < 64
    assert torch.equal(ours[1][:, outside], stock[1][:, outside])


def test_order_of_the_objects_and_sums_of_disjoint_regions():
    method = SpaceTime(locals=TWO, weight=2.5)
    assert torch.allclose(run(method)[0], run(replace(method, locals=TWO[::-1]))[0], atol=1e-9)
    apart = (local(LEFT, context(1, WIDTH)), local(RIGHT, context(2, WIDTH)))
    both, stock = run(SpaceTime(locals=apart))
    singles = [run(SpaceTime(locals=(x,)))[0] - stock for x in apart]
    assert torch.allclose(both - stock, singles[0] + singles[1], atol=1e-9)


def test_the_prompt_itself_as_description_changes_nothing():
    positive, negative = layer()[3]
    for mode in ("affine", "convex"):
        ours, stock = run(SpaceTime(locals=(local(EVERYWHERE, positive),), mode=mode, weight=3.0))
        assert torch.allclose(ours, stock, atol=1e-9)
    project, _, q, _ = layer()
    call = call_of(project, (1, 0), 2)
    draft = Draft(call)
    SpaceTime(locals=(local(EVERYWHERE, negative),), weight=3.0).contribute(call, draft)
    k, v = (heads(project(negative)[i]).expand(2, -1, -1, -1) for i in range(2))
    same = q[:1].expand(2, -1, -1, -1)
    dense = lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2) / D**0.5, -1) @ v  # noqa: E731
    assert torch.allclose(attend(same, k, v, draft.plan(), dense=dense), dense(same, k, v), atol=1e-9)


def test_overlap_can_be_shared_out():
    method = SpaceTime(locals=(local(EVERYWHERE, context(1, WIDTH)), local(LEFT, context(2, WIDTH))), split=True, weight=2.0, mode="affine")
    (_, everywhere), (_, left) = method.placed(call_of(None, (0,), 1))
    assert everywhere.view(8, 8)[0].tolist() == [1] * 4 + [2] * 4
    assert left.tolist() == [1] * 32


def test_batches_of_several_pictures():
    ours, _ = run(SpaceTime(locals=TWO, weight=2.5), (1, 0), per=3)
    single, _ = run(SpaceTime(locals=TWO, weight=2.5), (1, 0))
    for i in range(3):
        assert torch.allclose(ours[i], single[0], atol=1e-12) and torch.allclose(ours[3 + i], single[1], atol=1e-12)


def test_a_region_smaller_than_a_token_takes_the_nearest():
    method = SpaceTime(locals=(local(Disc(0.99, 0.01, 0.01), context(1, WIDTH)),))
    ((rows, weight),) = method.placed(call_of(None, (0,), 1))
    assert rows.tolist() == [7] and weight.tolist() == [5.0]


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def host():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


WIDTHS = {"sd15": 768, "sdxl": 2048, "wan": 4096, "wan_i2v": 4096, "wan_fun_reference": 4096, "wan_vace": 4096, "ltx": 48, "ltx_padded_text": 48, "cosmos_predict2": 48}
CROSS = {"sd15": 10, "sdxl": 22, "wan": 2, "wan_i2v": 2, "wan_fun_reference": 2, "wan_vace": 3, "ltx": 2, "ltx_padded_text": 2, "cosmos_predict2": 2}
"""Cross-attention calls to the prompt in one model call."""


def regions(name, *places):
    return tuple(local(place, context(10 + i, WIDTHS[name])) for i, place in enumerate(places))


@pytest.mark.host
@pytest.mark.parametrize("name", list(WIDTHS))
def test_reaches_every_cross_attention_to_the_prompt(host, name):
    model = tiny_models.tiny(name)
    stock = tiny_models.sample(model.patcher, model)
    patched = attach(model.patcher, SpaceTime(locals=regions(name, LEFT, RIGHT), weight=1.0))
    ours = tiny_models.sample(patched, model)
    run = record_of(patched).last
    assert torch.isfinite(ours).all() and not torch.equal(ours, stock)
    assert run.touched == {OWNER: 2 * CROSS[name]}
    assert {(e.kind, e.parts) for e in run.entries if e.planned} == {("cross", ("asides",))}
    assert {e.backend for e in run.entries if e.planned} == {"host"}
    assert torch.equal(stock, tiny_models.sample(model.patcher, model)), "the model itself is as before"
    assert torch.equal(ours, tiny_models.sample(patched, model)), "a second run is the same"


@pytest.mark.host
def test_off_is_bit_identical_and_makes_no_call(host):
    model = tiny_models.tiny("sd15")
    stock = tiny_models.sample(model.patcher, model)
    there = regions("sd15", LEFT)
    for method in (SpaceTime(), SpaceTime(locals=there, weight=0.0), SpaceTime(locals=(local(LEFT, context(1), 0.0),)), SpaceTime(locals=there, window=Window(0.5, 0.5))):
        assert methods_of(attach(model.patcher, method)) == ()
    for method in (SpaceTime(locals=there, fade=Fade("early", 0.0)), SpaceTime(locals=there, window=Window(0.999, 1.0))):
        patched = attach(model.patcher, method)
        assert torch.equal(stock, tiny_models.sample(patched, model))
        assert record_of(patched).last.touched == {OWNER: 0}


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "wan"])
def test_one_region_everywhere_is_another_prompt(host, name):
    model = tiny_models.tiny(name)
    there = regions(name, EVERYWHERE)
    ours = tiny_models.sample(attach(model.patcher, SpaceTime(locals=there, mode="convex", weight=1.0)), model)
    other = model._replace(positive=[[there[0].context, *model.positive[0][1:]]])
    want = tiny_models.sample(model.patcher, other)
    assert (ours - want).abs().max() < 2e-4
    assert (ours - tiny_models.sample(model.patcher, model)).abs().max() > 100 * (ours - want).abs().max()


def outputs(patcher, model, **how):
    """{row: [what the network gave it at each step]}."""
    seen = {0: [], 1: []}
    clone = patcher.clone()

    def wrapper(apply, args):
        out = apply(args["input"], args["timestep"], **args["c"])
        for row, part in zip(args["cond_or_uncond"], out.chunk(len(args["cond_or_uncond"])), strict=True):
            seen[row].append(part.clone())
        return out

    clone.set_model_unet_function_wrapper(wrapper)
    tiny_models.sample(clone, model, **how)
    return seen


@pytest.mark.host
def test_the_negative_prompt_is_untouched_and_affine_does_not_mind_split_batches(host, monkeypatch):
    model = tiny_models.tiny("sd15")
    there = regions("sd15", LEFT, RIGHT)
    stock = outputs(model.patcher, model, steps=1)
    affine = attach(model.patcher, SpaceTime(locals=there, mode="affine", weight=1.0))
    ours = outputs(affine, model, steps=1)
    scale = float(stock[1][0].abs().max())
    assert (ours[1][0] - stock[1][0]).abs().max() < 2e-6 * scale, "only the memory layout of the host's own call differs"
    assert (ours[0][0] - stock[0][0]).abs().max() > 1e-2 * scale
    monkeypatch.setattr(type(model.patcher.model), "memory_required", lambda *a, **k: 1e30)
    split = outputs(affine, model, steps=1)
    assert (split[0][0] - ours[0][0]).abs().max() < 2e-6 * scale
    with pytest.raises(LoomError, match="mode contrast, subtracts what the negative prompt gives"):
        tiny_models.sample(attach(model.patcher, SpaceTime(locals=there)), model, steps=1)


@pytest.mark.host
def test_contrast_without_a_negative_prompt_is_refused_and_affine_is_not(host):
    model = tiny_models.tiny("wan")
    there = regions("wan", LEFT)
    with pytest.raises(LoomError, match="at CFG 1 there is no negative prompt"):
        tiny_models.sample(attach(model.patcher, SpaceTime(locals=there)), model, cfg=1.0)
    assert torch.isfinite(tiny_models.sample(attach(model.patcher, SpaceTime(locals=there, mode="affine")), model, cfg=1.0)).all()


@pytest.mark.host
def test_an_extra_pass_of_the_positive_prompt_is_left_alone_by_contrast(host):
    import comfy.samplers

    model = tiny_models.tiny("wan")
    patched = attach(model.patcher, SpaceTime(locals=regions("wan", LEFT)))

    def post_cfg(args):
        (extra,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"])
        return args["denoised"] + 0.1 * (args["cond_denoised"] - extra)

    patched.set_model_sampler_post_cfg_function(post_cfg)
    assert torch.isfinite(tiny_models.sample(patched, model)).all()
    run = record_of(patched).last
    assert run.touched == {OWNER: 4}
    assert any("an extra pass without the negative prompt" in e.reason for e in run.entries)


@pytest.mark.host
@pytest.mark.parametrize(("mode", "passes"), [("affine", 2), ("contrast", 1)])
def test_beside_head_guidance(host, mode, passes):
    """Affine acts in the extra pass as in the main one; contrast rests there, for it has no negative prompt."""
    from attention_loom.core.guidance import Guidance
    from attention_loom.core.heads import HeadSet
    from attention_loom.core.methods.softpag import SoftPAG

    model = tiny_models.tiny("sd15")
    places, heads = SpaceTime(locals=regions("sd15", LEFT), mode=mode, weight=1.0), SoftPAG(HeadSet.parse("m0"), guidance=Guidance(2.0))
    one, other = (attach(attach(model.patcher, first), second) for first, second in ((places, heads), (heads, places)))
    ours = tiny_models.sample(one, model, steps=1)
    assert torch.equal(ours, tiny_models.sample(other, model, steps=1))
    run = record_of(one).last
    assert run.touched[OWNER] == passes * CROSS["sd15"]
    assert run.passes == {SoftPAG.owner: 1}
    assert torch.isfinite(ours).all()


@pytest.mark.host
def test_conditioning_of_an_area_is_left_alone(host):
    model = tiny_models.tiny("sd15", latent=(1, 4, 8, 8))
    (ctx, extra), *_ = model.positive
    areas = model._replace(positive=[[ctx, extra | {"area": (4, 8, 0, 0), "strength": 1.0}], [ctx, extra]])
    patched = attach(model.patcher, SpaceTime(locals=regions("sd15", LEFT), mode="affine", weight=1.0))
    tiny_models.sample(patched, areas, steps=1)
    run = record_of(patched).last
    assert run.touched == {OWNER: CROSS["sd15"]}
    assert sum(n for e, n in run.entries.items() if "a conditioning of an area" in e.reason) == CROSS["sd15"]


@pytest.mark.host
def test_models_and_encoders_that_do_not_fit(host):
    with pytest.raises(LoomError, match="FLUX offers none that can be used here"):
        attach(tiny_models.tiny("flux").patcher, SpaceTime(locals=(local(LEFT, context(1)),)))
    with pytest.raises(LoomError, match="encoded to a width of 48 and the model reads 768"):
        attach(tiny_models.tiny("sd15").patcher, SpaceTime(locals=(local(LEFT, context(1, 48)),)))


class Encoder:
    """A text encoder that notes what it reads."""

    def __init__(self, width):
        self.width, self.read = width, []

    def tokenize(self, text):
        self.read.append(text)
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return [[torch.zeros(1, 7, self.width), {}]]


@pytest.mark.host
def test_the_node_reads_its_inputs(host):
    from attention_loom.nodes.spacetime import configure

    clip = Encoder(2048)
    method = configure(clip, "a red fox @ left\nan owl @ right * 0.5", 0.5, "contrast", schedule="keyframes", keyframes="0:1, 1:0", prefix="a drawing of ")
    assert clip.read == ["a drawing of a red fox", "a drawing of an owl"]
    assert method.weight == 0.5 * 2.0 / 2
    assert method.fade.at(0.5) == 0.5
    assert configure(Encoder(768), "a fox @ left", 1.0, "convex").weight == 0.6
    assert configure(Encoder(768), "a fox @ left", 1.0, "affine", weight=3.0).weight == 3.0
    assert configure(None, "a fox @ left", 0.0).off and configure(Encoder(768), "", 1.0).off
    for bad, words in (
        (lambda: configure(None, "a fox @ left"), "no text encoder"),
        (lambda: configure(clip, "a fox @ left", 1.0, "both"), "mode 'both' was given"),
        (lambda: configure(clip, "a fox"), "has no place"),
    ):
        with pytest.raises(LoomError, match=words):
            bad()
