"""AttenCraft's masks: maps against dense ones written out, the rule of assignment, whole looks of real models, every refusal."""

import json
from dataclasses import replace
from types import SimpleNamespace

import host_inprocess
import pytest
import torch
from attention_loom.core.attach import attach
from attention_loom.core.attencraft import assign, masks, refine
from attention_loom.core.attencraft.layers import reading
from attention_loom.core.attencraft.look import look, sigma_at
from attention_loom.core.attencraft.masks import Rule
from attention_loom.core.attencraft.self_map import Layer, SelfMap
from attention_loom.core.errors import LoomError
from attention_loom.core.families import family_of
from attention_loom.core.inspect.study import Collection
from attention_loom.core.methods.inspector import Inspector
from attention_loom.core.schedule import BlockSelection
from tiny_models import here, tiny
from tiny_models import sample as run

PROMPT = "a photo of cat and red dog"
PHRASES = ["cat", "red dog"]


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the self map ----------------------------------------------------------------------------------------------------


def layers_of(grid=(4, 6), text=0, count=3, heads=4, kv=2, width=8):
    n = grid[0] * grid[1]
    own = SelfMap(grid=grid)
    for i in range(count):
        q, k = seeded(1, heads, text + n, width, seed=i), seeded(1, kv, text + n, width, seed=10 + i)
        own.layers.append(Layer(q[:, :, text:], k, text, 0.4))
    return own


def dense(own):
    """S, explicitly."""
    maps = []
    for layer in own.layers:
        p = (layer.q @ layer.k.repeat_interleave(layer.q.shape[1] // layer.k.shape[1], 1).mT * layer.scale).softmax(-1)
        maps.append(p[0, :, :, layer.first :].mean(0))
    return torch.stack(maps).mean(0)


@pytest.mark.parametrize("text", [0, 5])
def test_the_self_map_is_applied_without_being_formed(text, monkeypatch):
    own = layers_of(text=text)
    s, x = dense(own), seeded(3, 24, seed=5)
    assert (own.spread(x) - x @ s.mT).abs().max() < 1e-12
    assert abs(float(own.floor() - s.min())) < 1e-15
    monkeypatch.setattr("attention_loom.core.attencraft.self_map.BUDGET", 7000)  # stretches of a few rows
    assert abs(float(own.floor() - s.min())) < 1e-15


@pytest.mark.parametrize("text", [0, 5])
@pytest.mark.parametrize("power", [1, 4, 7])
def test_refined_maps_are_those_of_the_scaled_matrix_power(text, power):
    own, cross = layers_of(text=text), seeded(3, 2, 3, seed=6).softmax(0)
    p = refine.sharpened(cross, (4, 6), 2)
    s = dense(own)
    scaled = torch.linalg.matrix_power((s - s.min()) / (s.max() - s.min()), power)
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min())
    wanted = refine.scaled((p.flatten(1) @ scaled.mT).unflatten(1, (4, 6)))
    assert (refine.refined(p, own, power) - wanted).abs().max() < 1e-9


def test_words_maps_are_enlarged_squared_and_scaled():
    cross = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(cross[None], (8, 8), mode="bicubic", align_corners=False)[0] ** 2
    wanted = torch.stack([(m - m.min()) / (m.max() - m.min()) for m in large])
    assert torch.equal(refine.sharpened(cross, (8, 8), 2.0), wanted)
    assert torch.equal(refine.sharpened(cross, (8, 8), 2.0).amin((1, 2)), torch.zeros(2))


def alike(codes, grid):
    """A self map in which places look at places of their own code alone."""
    q = torch.nn.functional.one_hot(codes).double()[None, None] * 60
    return SelfMap([Layer(q, q, 0, 1.0)], grid)


def test_places_that_look_at_themselves_keep_their_map():
    p = refine.scaled(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)).double())
    for power in (1, 4):
        assert (refine.refined(p, alike(torch.arange(16), (4, 4)), power) - p).abs().max() < 1e-12


def test_places_that_look_at_each_other_get_one_value():
    halves = (torch.arange(16) >= 8).long()
    p = refine.scaled(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2)).double())
    first = refine.refined(p, alike(halves, (4, 4)), 1)
    assert (refine.refined(p, alike(halves, (4, 4)), 5) - first).abs().max() < 1e-9
    for half in (first[:, :2], first[:, 2:]):
        assert (half - half[:, :1, :1]).abs().max() < 1e-9
    assert set(first.flatten().round(decimals=9).tolist()) == {0.0, 1.0}


# --- assignment ------------------------------------------------------------------------------------------------------


def test_a_place_goes_to_whom_it_follows_by_more_than_the_threshold():
    maps = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(3))
    for tau in (0.0, 0.1, 0.3):
        wanted = torch.zeros(4, 5, 7, dtype=torch.bool)
        for c in range(4):
            for y in range(5):
                for x in range(7):
                    wanted[c, y, x] = all(maps[c, y, x] - maps[d, y, x] > tau for d in range(4) if d != c)
        found = assign.assigned(maps, tau)
        assert torch.equal(found, wanted) and found.sum(0).max() <= 1
    assert not assign.assigned(maps, 1.0).any()
    assert not assign.assigned(maps[[0, 0, 1]], 0.0)[:2].any(), "of two equal maps none wins"


def test_masks_that_make_no_sense_are_refused():
    names = ["cat", "dog", "background"]
    good = torch.zeros(3, 10, 10, dtype=torch.bool)
    good[0, :5], good[1, 5:, :5], good[2, 5:, 5:] = True, True, True
    soft = 0.1 + 0.9 * good.float()
    matrix = assign.confusion(soft, good)
    assert torch.allclose(matrix, torch.tensor([[50.0, 5, 5], [2.5, 25, 2.5], [2.5, 2.5, 25]]))
    assert assign.consistent(matrix)
    assign.insist(good, matrix, names)
    empty = good.clone()
    empty[1] = False
    with pytest.raises(LoomError, match="the mask of 'dog' covers 0.00 %"):
        assign.insist(empty, matrix, names)
    swapped = assign.confusion(soft[[1, 1, 2]], good)
    with pytest.raises(LoomError, match="do not tell the concepts apart") as told:
        assign.insist(good, swapped, names)
    assert "background" in str(told.value) and "0." in str(told.value), "the matrix is shown"


# --- whole looks -----------------------------------------------------------------------------------------------------

SIZES = {"sd15": (1, 4, 8, 12), "sdxl": (1, 4, 8, 12), "sd3": None, "flux": None, "qwen_image": None, "lumina2": None, "z_image": None}
SIZES |= dict.fromkeys(here("aura_flow", "omnigen2", "boogu", "krea2", "ideogram4", "mage_flow", "joyimage"))


@pytest.fixture
def host():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def shown(name):
    """A tiny model and a latent that shows something."""
    model = tiny(name, latent=SIZES[name])
    return model, torch.randn(model.latent.shape, generator=torch.Generator().manual_seed(9))


def layers_read(model, latent, detail="auto"):
    diffusion = model.patcher.get_model_object("diffusion_model")
    return reading(family_of(diffusion), diffusion, (latent.shape[-2], latent.shape[-1]), detail)


@pytest.mark.host
@pytest.mark.parametrize("name", SIZES)
def test_a_look_reads_probabilities(name, host):
    model, latent = shown(name)
    layers, tokens = layers_read(model, latent), model.positive[0][0].shape[1]
    seen = look(model.patcher, model.positive, latent, layers, tuple((t,) for t in range(tokens)), 150, seed=0)
    assert seen.places.grid == (model.facts.grid[1:] if layers.joint else seen.places.grid)
    total = seen.words.sum(0)
    assert (seen.words > 0).all()
    if layers.joint:
        ones = seen.places.spread(torch.ones(1, total.numel()))[0].view(total.shape)
        assert (total < 1).all() and (ones < 1).all(), "text and picture share one softmax"
        if name not in ("z_image", "aura_flow"):  # these have tokens of their own beside text and picture
            assert (total + ones - 1).abs().max() < 1e-5
    else:
        assert (total - 1).abs().max() < 1e-5
        assert (seen.places.spread(torch.ones(1, seen.places.layers[0].places)) - 1).abs().max() < 1e-5
        assert seen.places.grid == (8, 12) if name == "sd15" else (4, 6)


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_maps_are_those_of_the_layers_and_give_their_output(name, host):
    """Against what the host's own attention got and gave, layer by layer."""
    model, latent = shown(name)
    layers = layers_read(model, latent)
    calls = []

    def foreign(func, q, k, v, heads, *args, **kwargs):
        out = func(q, k, v, heads, *args, **kwargs)
        q, k, v = (x if kwargs.get("skip_reshape") else x.unflatten(-1, (-1, x.shape[-1] // heads)).transpose(1, 2) if x.ndim == 3 else x.transpose(1, 2) for x in (q, k, v))
        calls.append((q.clone(), k.clone(), v.clone(), out.clone()))
        return out

    patched = model.patcher.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = foreign
    tokens = model.positive[0][0].shape[1]
    seen = look(patched, model.positive, latent, layers, tuple((t,) for t in range(tokens)), 150, seed=0)
    calls = [c for c in calls if name == "sd15" or c[0].shape[2] > seen.words[0].numel()]  # this SD3 also looks at the picture alone
    numbers = sorted(b.ordinal for b in layers.words)
    own = [2 * i + 1 for i in numbers] if name == "sd15" else numbers
    maps = []
    for i in own:
        q, k, v, out = calls[i]
        p = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        assert ((p @ v).transpose(1, 2).flatten(2) - out).abs().max() < 1e-4
        maps.append(p[0].mean(0))
    wanted = torch.stack(maps).mean(0)
    wanted = wanted.mT if name == "sd15" else wanted[tokens:, :tokens].mT
    assert (seen.words.flatten(1) - wanted).abs().max() < 1e-6
    numbers = sorted(b.ordinal for b in layers.places)
    places = torch.stack([(q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)[0].mean(0) for q, k, _, _ in (calls[2 * i] if name == "sd15" else calls[i] for i in numbers)]).mean(0)
    places = places if name == "sd15" else places[tokens:, tokens:]
    x = torch.rand(2, places.shape[0], generator=torch.Generator().manual_seed(4))
    assert (seen.places.spread(x) - x @ places.mT).abs().max() < 1e-6


@pytest.mark.host
def test_looking_changes_nothing_and_is_repeatable(host):
    model, latent = shown("sd15")
    layers = layers_read(model, latent)
    before = run(model.patcher, model)
    a, b, c = (look(model.patcher, model.positive, latent, layers, ((1,), (0,)), 150, seed=s) for s in (7, 7, 8))
    assert torch.equal(a.words, b.words) and not torch.equal(a.words, c.words)
    assert torch.equal(run(model.patcher, model), before)
    assert "loom_methods" not in model.patcher.model_options["transformer_options"]
    two = look(model.patcher, model.positive, latent, layers, ((1,), (0,)), 150, seed=7, looks=2)
    assert not torch.equal(two.words, a.words) and len(two.places.layers) == 2 * len(a.places.layers)


@pytest.mark.host
def test_what_else_is_on_the_model_rests_and_what_the_look_sees_is_the_model_alone(host):
    model, latent = shown("sd15")
    layers = layers_read(model, latent)
    read = Collection()
    watched = attach(model.patcher, Inspector(percents=(0.5,), into=read))
    alone = look(model.patcher, model.positive, latent, layers, ((1,),), 150, seed=7)
    assert torch.equal(look(watched, model.positive, latent, layers, ((1,),), 150, seed=7).words, alone.words)
    assert read.last is None


@pytest.mark.host
def test_the_noise_level_is_that_of_the_training(host):
    unet, flow = (tiny(name).patcher.get_model_object("model_sampling") for name in ("sd15", "sd3"))
    assert sigma_at(unet, 150) == pytest.approx(float(unet.sigmas[150]), rel=1e-5)
    assert sigma_at(flow, 150) == 0.15 and sigma_at(flow, 0) == 0.001
    from comfy.model_sampling import ModelSamplingContinuousEDM, ModelSamplingContinuousV

    for kind in (ModelSamplingContinuousEDM, ModelSamplingContinuousV):  # as Playground 2.5 and CosXL have them: time is counted in another way
        sampling = kind()
        levels = [sigma_at(sampling, t) for t in (0, 150, 500, 999)]
        assert levels == sorted(levels) and float(sampling.sigma_min) <= levels[0] < levels[-1] <= float(sampling.sigma_max)


@pytest.mark.host
def test_levels_are_told_by_their_size(host):
    """As the paper reads Stable Diffusion: words at 16 x 16 and places at 32 x 32 of a latent of 64 x 64."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops

    def model(**sizes):
        return unet.UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=32, num_head_channels=32, use_spatial_transformer=True, context_dim=8,
            legacy=False, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **sizes,
        )  # fmt: skip

    def named(blocks):
        return sorted({f"{b.kind} {b.index}" for b in blocks})

    sd = model(num_res_blocks=[2] * 4, channel_mult=(1, 1, 1, 1), transformer_depth=[1] * 6 + [0, 0], transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1)
    found = reading(family_of(sd), sd, (64, 64), "auto")
    assert named(found.words) == ["input 7", "input 8", "output 3", "output 4", "output 5"]
    assert named(found.places) == ["input 4", "input 5", "output 6", "output 7", "output 8"]
    fine = reading(family_of(sd), sd, (24, 32), "auto")
    assert named(fine.words) == named(found.places) and fine.step == 2
    finest = reading(family_of(sd), sd, (17, 24), "auto")
    assert finest.words == finest.places == {b for b in family_of(sd).blocks(sd) if b.level == 0} and finest.step == 1
    xl = model(
        num_res_blocks=[2] * 3, channel_mult=(1, 1, 1), transformer_depth=[0, 0, 2, 2, 3, 3], transformer_depth_output=[0, 0, 0, 2, 2, 2, 3, 3, 3], transformer_depth_middle=3
    )
    found = reading(family_of(xl), xl, (128, 128), "auto")
    assert named(found.words) == ["input 7", "input 8", "output 0", "output 1", "output 2"] and len(found.words) == 15
    assert named(found.places) == ["input 4", "input 5", "output 3", "output 4", "output 5"] and len(found.places) == 10
    with pytest.raises(LoomError, match="multiples of 4"):
        reading(family_of(sd), sd, (64, 66), "coarse")
    flux = tiny("flux").patcher.get_model_object("diffusion_model")
    assert named(reading(family_of(flux), flux, (4, 6), "auto", BlockSelection.parse("s1")).words) == ["single 1"]
    with pytest.raises(LoomError, match="selects none of the 3 blocks"):
        reading(family_of(flux), flux, (4, 6), "auto", BlockSelection.parse("9"))
    with pytest.raises(LoomError, match="no attention that is fine"):
        reading(family_of(xl), xl, (128, 128), "fine")


# --- the node --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    """The host's SD 1.5 tokeniser; its encoder is stood for by a random text of the right size."""
    host_inprocess.import_host()
    from comfy.sd1_clip import SD1Tokenizer

    words = SD1Tokenizer()
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(3))
    return SimpleNamespace(
        tokenizer=words,
        cond_stage_model=object(),
        tokenize=lambda text, return_word_ids=False, **kw: words.tokenize_with_weights(text, return_word_ids, **kw),
        encode_from_tokens_scheduled=lambda tokens: [[text.repeat(1, len(tokens["l"]), 1), {}]],
    )


@pytest.fixture
def node(host):
    from attention_loom.nodes import attencraft

    return attencraft


def any_masks(monkeypatch):
    """Random weights know no cats: what they find is taken as it is."""
    monkeypatch.setattr(masks.Found, "insist", lambda self: None)


@pytest.mark.host
def test_the_order_of_concepts_plays_no_part(node, clip, monkeypatch):
    any_masks(monkeypatch)
    model, latent = shown("sd15")
    ways = [masks.find(model.patcher, clip, PROMPT, phrases, {"samples": latent}, Rule(tau=0.0))[0] for phrases in (PHRASES, PHRASES[::-1])]
    assert torch.equal(ways[0].masks, ways[1].masks[[1, 0, 2]]) and ways[0].masks.any() and torch.equal(ways[0].soft, ways[1].soft[[1, 0, 2]])
    assert ways[0].masks.sum(0).max() == 1 and ways[0].names == ("cat", "red dog", "background")


@pytest.mark.host
def test_the_node_hands_on_masks_of_the_pictures_size(node, clip, monkeypatch):
    any_masks(monkeypatch)
    model, latent = shown("sd15")
    sized, background, page, text = node.LoomAttenCraftMasks.execute(model.patcher, clip, {"samples": latent}, "cat\n\n red dog \n", threshold=0.0).result
    assert sized.shape == (2, 64, 96) and background.shape == (1, 64, 96) and page.shape[0] == 1 and page.shape[3] == 3
    assert set(sized.unique().tolist()) <= {0.0, 1.0} and (sized.sum(0) + background[0]).max() == 1
    told = json.loads(text)
    assert [c["phrase"] for c in told["concepts"]] == PHRASES and told["concepts"][1]["tokens"] == [6, 7]
    assert told["cells"] == [8, 12] and told["confusion"]["names"][-1] == "background"
    assert sum(told["share_of_picture"].values()) + told["nobody"] == pytest.approx(1, abs=2e-4)
    picture = torch.rand(1, 128, 192, 3)
    with_picture = node.LoomAttenCraftMasks.execute(model.patcher, clip, {"samples": latent}, "cat\nred dog", threshold=0.0, image=picture).result
    assert with_picture[0].shape == (2, 128, 192)
    assert torch.equal(with_picture[0][:, ::16, ::16], sized[:, ::8, ::8])


@pytest.mark.host
def test_masks_go_straight_into_keep_subjects_consistent(node, clip, monkeypatch):
    from attention_loom.nodes import ir_diffusion

    any_masks(monkeypatch)
    model, latent = shown("sd15")
    sized = node.LoomAttenCraftMasks.execute(model.patcher, clip, {"samples": latent}, "cat\nred dog", threshold=0.0).result[0]
    ours = ir_diffusion.configure(sized, sized, min_mask=0.0)
    assert torch.equal(ours.references, sized) and ours.scene.shape[1] == 2
    both = node.LoomAttenCraftMasks.execute(model.patcher, clip, {"samples": latent}, "dog", threshold=0.0, prompt=PROMPT, masks_before=sized[:1]).result[0]
    assert both.shape == sized.shape and torch.equal(both[0], sized[0])
    with pytest.raises(LoomError, match="masks_before are 32 x 32 and these 96 x 64"):
        node.LoomAttenCraftMasks.execute(model.patcher, clip, {"samples": latent}, "dog", threshold=0.0, masks_before=torch.ones(1, 32, 32))


@pytest.mark.host
def test_models_without_a_start_token_have_what_nobody_claims_as_background(host):
    model, latent = shown("flux")
    layers = layers_read(model, latent)
    members, groups = masks.grouped([(1,), (2, 3)], layers)
    assert groups == ((1,), (2,), (3,))
    seen = look(model.patcher, model.positive, latent, layers, groups, 150, seed=0)
    found = masks.make(seen.words, members, seen.places, Rule(tau=0.0), ("cat", "red dog"), True)
    assert torch.allclose(found.soft[-1], 1 - found.soft[:-1].amax(0))
    assert torch.equal(found.cross[1], seen.words[1:].amax(0)), "a phrase of several words has the largest of their maps"


def test_scores_are_the_attention_inside_the_mask():
    words = torch.zeros(4, 4, 4)
    words[0, :2], words[1, 2:, :2], words[2, 2:, :2], words[3, 2:, 2:] = 0.5, 0.4, 0.3, 0.2
    found = masks.make(words, [range(1), range(1, 3)], alike(torch.arange(16), (4, 4)), Rule(), ("cat", "red dog"), False)
    assert found.scores == pytest.approx((0.5, 0.4)) and found.shares == [0.5, 0.25, 0.25]
    assert torch.equal(found.masks[1], words[1] > 0)
    found.insist()


@pytest.mark.host
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"concepts": ""}, "0 concepts were given"),
        ({"concepts": "\n".join("abcdefghi")}, "9 concepts were given"),
        ({"concepts": "frog", "prompt": PROMPT}, "'frog' does not stand in the prompt"),
        ({"concepts": "cat\ncat", "prompt": PROMPT}, "share tokens"),
        ({"prompt": "a cat and a red dog and a cat"}, "'cat' stands in the prompt more than once"),
        ({"prompt": PROMPT + ", very detailed" * 40}, "read from one stretch of 77"),
        ({"clip": None}, "no text encoder"),
        ({"latent": {"samples": torch.ones(2, 4, 8, 12)}}, "holds 2 pictures"),
        ({"latent": {"samples": torch.ones(1, 16, 8, 12)}}, "16 channels and this model 4"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 12)}}, "the latent is empty"),
        ({"latent": {"samples": torch.ones(1, 4, 9, 12)}, "detail": "fine"}, "multiples of 2"),
        ({"detail": "coarse"}, "no attention that is coarse"),
        ({"detail": "best"}, "detail 'best'"),
        ({"timestep": 1000}, "timestep 1000"),
        ({"threshold": 1.0}, "covers 0.00 %"),
        ({"looks": 0}, "looks 0"),
        ({"blocks": "3"}, "on U-Nets choose detail"),
    ],
)
def test_bad_input_gets_one_sentence(node, clip, inputs, words):
    model, latent = shown("sd15")
    given = {"clip": clip, "latent": {"samples": latent}, "concepts": "cat\nred dog"} | inputs
    with pytest.raises(LoomError, match=words):
        node.LoomAttenCraftMasks.execute(model.patcher, **given)


@pytest.mark.host
@pytest.mark.parametrize(("name", "words"), [("wan", "connect SD 1.5"), ("svd", "connect SD 1.5")])
def test_models_whose_words_have_no_known_place_are_refused(name, words, host):
    model = tiny(name)
    with pytest.raises(LoomError, match=words):
        layers_read(model, model.latent)


def test_rules_are_frozen_and_told():
    assert replace(Rule(), tau=0.2).tau == 0.2
