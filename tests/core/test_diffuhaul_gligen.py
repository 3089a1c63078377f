"""GLIGEN with a masked exchange: the facts of the host's own fuser that the mask rests on, held against the fuser with a mask written out."""

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach
from attention_loom.core.blob import Blob
from attention_loom.core.drag import Drag, Scene
from attention_loom.core.errors import LoomError
from attention_loom.core.masked_gligen import MaskedGligen, gated, stand_in
from attention_loom.core.methods.diffuhaul import DiffUHaul
from attention_loom.kernels.plan import Labels

pytestmark = pytest.mark.host
FRAME, CELLS = (64, 96), (8, 12)
WIDTH = 768
STILL = Drag(0, 0)
PARAMS = [(16, 32, 16, 8), (16, 32, 0, 56)]
"""(height, width, y, x) of two boxes in pixels: the second is above and to the right of the first."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stock(host):
    """A random GLIGEN for the tiny SD 1.5, gates open."""
    import comfy.gligen
    from attention_loom.core.families.unet import channels

    widths = channels(tiny_models.tiny("sd15").patcher.get_model_object("diffusion_model"))
    modules = [comfy.gligen.GatedSelfAttentionDense(w, WIDTH, 8, w // 8) for w in widths]
    made = comfy.gligen.Gligen(modules, comfy.gligen.PositionNet(WIDTH, WIDTH), WIDTH)
    tiny_models.randomise(made)
    for module in modules:
        module.alpha_attn.data.fill_(0.8), module.alpha_dense.data.fill_(0.5)
    return made.requires_grad_(False)


def params(boxes=PARAMS):
    """As GLIGENTextBoxApply makes them, in latent cells."""
    return [(draw(1, WIDTH, seed=i), h / 8, w / 8, y / 8, x / 8) for i, (h, w, y, x) in enumerate(boxes)]


def scene(drag=STILL, whole=False):
    edges = [(0, 0, 96, 64)] * 2 if whole else [(x, y, x + w, y + h) for h, w, y, x in PARAMS]
    return Scene(tuple(Blob.of_edges(e, FRAME, "box") for e in edges), ("a", "b"), drag)


def masked(stock, drag=STILL, whole=False, **more):
    boxes = tuple((x / 12, y / 8, (x + w) / 12, (y + h) / 8) for _, h, w, y, x in params())
    return MaskedGligen(stock, scene(drag, whole), (0, 1), boxes, boxes, **more)


def options(index=0, aside=False):
    from attention_loom.core.beside import SidePass
    from attention_loom.core.guidance import EXTRA

    return {"transformer_index": index, "activations_shape": (2, 320, *CELLS)} | ({EXTRA: SidePass("source")} if aside else {})


def both(one, other, x, **where):
    return tuple(g.set_position((2, 4, *CELLS), params(), torch.device("cpu"))(x, options(**where)) for g in (one, other))


def written_out(module, x, objects, allowed):
    """The fuser's own forward with a mask [N + n, N + n] of admitted pairs."""
    seq = module.norm1(torch.cat([x, module.linear(objects)], 1))
    heads = module.attn.heads
    q, k, v = (f(seq).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (module.attn.to_q, module.attn.to_k, module.attn.to_v))
    logits = (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf"))
    out = (logits.softmax(-1) @ v.double()).to(x.dtype).transpose(1, 2).flatten(2)
    x = x + torch.tanh(module.alpha_attn) * module.attn.to_out(out)[:, : x.shape[1]]
    return x + torch.tanh(module.alpha_dense) * module.ff(module.norm2(x))


# --- exact facts ----------------------------------------------------------------------------------------------------------


def test_nothing_to_cut_is_stock_bit_for_bit(host, stock):
    x = draw(2, 96, 320, seed=3)
    for made in (masked(stock, whole=True), masked(stock, masked=False)):
        assert torch.equal(*both(stock, made, x)) and torch.equal(*both(stock, made, x, aside=True))
    empty = [g.set_empty((2, 4, *CELLS), torch.device("cpu"))(x, options()) for g in (stock, masked(stock))]
    assert torch.equal(*empty), "null tokens alone are never cut"
    none = [g.set_position((2, 4, *CELLS), [], torch.device("cpu"))(x, options()) for g in (stock, MaskedGligen(stock, scene(), (), (), ()))]
    assert torch.equal(*none)


def test_the_mask_is_that_of_visual_queries_and_object_keys(host, stock):
    x = draw(2, 96, 320, seed=3)
    plain, got = both(stock, masked(stock), x)
    objects = position_tokens(stock)
    allowed = torch.ones(126, 126, dtype=torch.bool)
    for i, found in enumerate(scene().on(*CELLS)):
        allowed[:96, 96 + i] = found.old
    want = written_out(stock.module_list[0], x, objects, allowed)
    assert (got - want).abs().max() < 1e-5 * want.abs().max() and (got - plain).abs().max() > 1e-2
    also = allowed.clone()
    also[96:, :96] = allowed[:96, 96:].T
    assert torch.equal(written_out(stock.module_list[0], x, objects, also), want), "cutting object rows as well changes nothing"
    rows = torch.ones(126, 126, dtype=torch.bool)
    rows[96:, :96] = allowed[:96, 96:].T
    open_ = torch.ones(126, 126, dtype=torch.bool)
    assert torch.equal(written_out(stock.module_list[0], x, objects, rows), written_out(stock.module_list[0], x, objects, open_)), "nor does cutting them alone"


def test_rows_that_nothing_is_cut_from_stay(host, stock):
    """Within one layer, exactly."""
    x, objects = draw(1, 96, 320, seed=3), position_tokens(stock)[:1]
    every = (1 << 31) - 1
    label = torch.cat([torch.zeros(96, dtype=torch.int8), torch.arange(1, 31, dtype=torch.int8)])[None]
    made = []
    for cut in (range(0), range(20, 40)):
        allow = torch.full((1, 96), every)
        allow[:, list(cut)] = every ^ 2
        made.append(gated(stock.module_list[0], x, objects, Labels(label, allow, 31)))
    changed = (made[0] != made[1]).any(-1)[0]
    assert changed[20:40].all() and not changed[:20].any() and not changed[40:].any()


def test_a_closed_gate_knows_no_mask(host, stock):
    x, module = draw(2, 96, 320, seed=3), stock.module_list[0]
    kept = module.alpha_attn.data.clone()
    try:
        module.alpha_attn.data.zero_()
        assert torch.equal(*both(stock, masked(stock), x))
    finally:
        module.alpha_attn.data.copy_(kept)


def position_tokens(stock):
    seen = []
    real = stock.position_net.forward
    stock.position_net.forward = lambda *a: seen.append(real(*a)) or seen[-1]
    try:
        stock.set_position((2, 4, *CELLS), params(), torch.device("cpu"))
    finally:
        stock.position_net.forward = real
    return seen[0]


# --- source and result ----------------------------------------------------------------------------------------------------


def test_source_and_result_have_their_own_boxes_and_regions(host, stock):
    drag = Drag(24, 16)
    old = tuple((x / 12, y / 8, (x + w) / 12, (y + h) / 8) for _, h, w, y, x in params())
    new = tuple((a + 0.25, b + 0.25, c + 0.25, d + 0.25) if i == 0 else (a, b, c, d) for i, (a, b, c, d) in enumerate(old))
    made = MaskedGligen(stock, scene(drag), (0, 1), old, new)
    x = draw(2, 96, 320, seed=3)
    at = torch.device("cpu")
    patch = made.set_position((2, 4, *CELLS), params(), at)
    source, result = patch(x, options(aside=True)), patch(x, options())
    assert torch.equal(source, masked(stock).set_position((2, 4, *CELLS), params(), at)(x, options()))
    moved_scene = Scene(tuple(Blob.of_edges(e, FRAME, "box") for e in ((32, 32, 64, 48), (56, 0, 88, 16))), ("a", "b"), Drag(0, 0))
    moved = MaskedGligen(stock, moved_scene, (0, 1), new, new)
    assert torch.equal(result, moved.set_position((2, 4, *CELLS), params(), at)(x, options()))
    batch = MaskedGligen(stock, scene(drag), (0, 1), old, new, in_batch=True).set_position((2, 4, *CELLS), params(), at)(x, options())
    assert torch.allclose(batch[0], source[0], atol=1e-5) and torch.allclose(batch[1], result[1], atol=1e-5), "of a batch the first is the source"


def grounded(positive, patcher, boxes=PARAMS):
    text, facts = positive[0]
    return [[text, facts | {"gligen": ("position", patcher, params(boxes))}]]


def patcher_of(stock):
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(stock, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def painted():
    mask = torch.zeros(1, *FRAME)
    mask[:, 16:32, 8:40] = 1
    return mask


def ask(stock, boxes=PARAMS, **settings):
    from attention_loom.nodes.diffuhaul import dragged

    model = tiny_models.tiny("sd15", latent=(1, 4, *CELLS))
    given = dict(mask=painted(), dx=24, dy=16, region_shape="box", latent={"samples": draw(1, 4, *CELLS, seed=9)}) | settings
    positive = given.pop("positive", None) or grounded(model.positive, patcher_of(stock), boxes)
    patched, latent, positive, redrawn = dragged(given.pop("model", model.patcher), positive, **given)
    return model._replace(positive=positive), patched, latent, redrawn


def test_the_node_moves_the_box_and_masks_the_exchange(host, stock):
    model, patched, latent, _ = ask(stock)
    kind, held, moved = model.positive[0][1]["gligen"]
    assert kind == "position" and isinstance(held.model, MaskedGligen) and held.model.module_list is stock.module_list
    assert [tuple(float(v) for v in p[1:]) for p in moved] == [(2, 4, 4, 4), (2, 4, 0, 7)]
    assert held.model.order == (0, 1) and held.model.scene.objects[1].edges == (56, 0, 88, 16)
    import comfy.sample

    noise = draw(1, 4, *CELLS, seed=2)
    out = comfy.sample.sample(
        patched, noise, 2, 3.0, "euler", "simple", model.positive, model.negative, latent["samples"], disable_pbar=True, seed=1, noise_mask=latent["noise_mask"]
    )
    keep = latent["noise_mask"][0] == 0
    # up to the host's own scaling of the latent and back
    assert torch.isfinite(out).all() and keep.any() and (out - latent["samples"])[:, :, keep].abs().max() < 1e-5, "outside, the latent is the picture's"
    other, patched, latent, _ = ask(stock, masked_exchange=False)
    free = comfy.sample.sample(
        patched, noise, 2, 3.0, "euler", "simple", other.positive, other.negative, latent["samples"], disable_pbar=True, seed=1, noise_mask=latent["noise_mask"]
    )
    assert not torch.equal(free, out)


def test_what_grounding_does_not_fit_is_said(host, stock):
    import comfy.gligen

    sd15 = tiny_models.tiny("sd15")
    for words, settings in (
        ("no GLIGEN box of the prompt lies on the object's mask", dict(boxes=PARAMS[1:])),
        ("31 GLIGEN boxes were given and 30 fit", dict(boxes=[(2, 2, 2 * i, 0) for i in range(31)])),
        ("have the same box", dict(boxes=[PARAMS[0], PARAMS[1], PARAMS[1]])),
        ("other objects were given as text", dict(others="a cat @ right")),
        ("the prompt has no GLIGEN boxes", dict(positive=sd15.positive, grounding="gligen")),
        ("which would stay where they are", dict(grounding="regional text", caption="x")),
        ("out of the picture by 4 pixels on the right", dict(dx=60)),
    ):
        with pytest.raises(LoomError, match=words):
            ask(stock, **settings)
    fewer = comfy.gligen.Gligen(list(stock.module_list)[:3], stock.position_net, WIDTH)
    with pytest.raises(LoomError, match="the GLIGEN model has 3 blocks and this model 10 layers"):
        ask(fewer)
    sd3 = tiny_models.tiny("sd3", latent=(1, 16, *CELLS))
    with pytest.raises(LoomError, match="and this model 0 layers"):
        ask(stock, model=sd3.patcher, latent={"samples": draw(1, 16, *CELLS)})
    model = ask(stock)[0]
    with pytest.raises(LoomError, match="went through a Drag Object node already"):
        ask(stock, positive=model.positive)
    assert stand_in(patcher_of(stock), masked(stock)).model.scene is not None


def test_a_picture_generated_beside_comes_out_as_without_the_drag(host, stock):
    model, patched, latent, _ = ask(stock, source="generated beside", latent={"samples": torch.zeros(1, 4, *CELLS)})
    assert latent["samples"].shape[0] == 2 and latent["batch_index"] == [0, 0] and "noise_mask" not in latent
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent["samples"], 5, latent["batch_index"])
    assert torch.equal(noise[0], noise[1])
    sample = dict(disable_pbar=True, seed=1)
    out = comfy.sample.sample(patched, noise, 2, 3.0, "euler", "simple", model.positive, model.negative, latent["samples"], **sample)
    method = patched.model_options["transformer_options"]["loom_methods"][0]
    assert isinstance(method, DiffUHaul) and method.source is None and not method.vacate
    rest, still, latent, _ = ask(stock, source="generated beside", latent={"samples": torch.zeros(1, 4, *CELLS)}, dx=0, dy=0, force_run=True)
    same = comfy.sample.sample(still, noise, 2, 3.0, "euler", "simple", rest.positive, rest.negative, latent["samples"], **sample)
    assert torch.equal(same[0], same[1]) and torch.allclose(same[0], out[0], atol=1e-4 * float(out[0].abs().max()))
    assert not torch.equal(out[0], out[1]) and attach is not None
