"""The node Drag Object: what it reads, what it hands on, what it refuses; and a photograph through a whole model."""

from types import SimpleNamespace

import pytest
import tiny_models
import torch
from attention_loom.core.attach import methods_of
from attention_loom.core.blob import Blob
from attention_loom.core.drag_request import scene_of
from attention_loom.core.errors import LoomError
from attention_loom.core.tracks import Tracks

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
FRAME, CELLS = (64, 96), (8, 12)


@pytest.fixture
def node():
    from attention_loom.nodes import diffuhaul

    return diffuhaul


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def painted(top=16, bottom=48, left=8, right=40):
    mask = torch.zeros(1, *FRAME)
    mask[:, top:bottom, left:right] = 1
    return mask


def clip(width):
    """A text encoder of three tokens per word."""
    return SimpleNamespace(tokenize=lambda text: text, encode_from_tokens_scheduled=lambda text: [[draw(1, 3 * len(text.split()), width, seed=len(text)), {}]])


CHANNELS = {"sd15": 4, "sd3": 16, "flux": 16}


def ask(node, name="sd15", **settings):
    """The node's outputs on a tiny model."""
    size = (1, CHANNELS[name], *CELLS)
    model = tiny_models.tiny(name, latent=size)
    given = dict(mask=painted(), dx=40, dy=8, scale=1.0, strength=1.0, caption="a red vase", clip=clip(model.positive[0][0].shape[-1]), region_shape="box") | settings
    latent = given.pop("latent", {"samples": draw(*size, seed=9)})
    out = node.LoomDiffUHaul.execute(given.pop("model", model.patcher), given.pop("positive", model.positive), latent, **given).result
    return model, latent, *out


# --- what it hands on -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_a_method_with_a_caption(node):
    model, latent, patched, out, positive, redrawn = ask(node)
    (method,) = methods_of(patched)
    assert positive is model.positive and out["samples"] is latent["samples"] and out["noise_mask"] is redrawn and redrawn.shape == (1, *CELLS)
    assert method.source.latent is latent["samples"] and [t.shape for t in method.texts] == [(1, 9, 768)] and method.spans == ()
    assert method.vacate and method.copy == 1.0 and method.scope == "auto" and method.source.buckets.count == 0
    assert (method.anchoring.schedule, method.anchoring.end, method.anchoring.amount) == ("layout first", 0.5, 1.0)
    assert (method.scene.drag.dx, method.scene.drag.dy) == (40, 8) and method.scene.names == ("a red vase",)
    defaults = {i.id: i.default for i in node.LoomDiffUHaul.define_schema().inputs if getattr(i, "default", None) is not None}
    assert (defaults["region_shape"], defaults["redraw_cells"], defaults["redraw_share"], defaults["strength"]) == ("ellipse", 2.0, 0.05, 1.0)


def test_captions_stand_behind_the_prompt_of_joint_models(node):
    model, _, patched, _, positive, _ = ask(node, "flux", others="a blue cat @ 0.7, 0, 1, 0.3", dx=24)
    (method,) = methods_of(patched)
    (text, facts), (prompt, given) = positive[0], model.positive[0]
    assert method.texts == () and method.spans == (9, 9) and text.shape[1] == prompt.shape[1] + 18
    assert torch.equal(text[:, : prompt.shape[1]], prompt) and facts["pooled_output"] is given["pooled_output"]
    assert method.scene.objects[1].edges == pytest.approx((67.2, 0, 96, 19.2))
    out = tiny_models.sample(patched, model._replace(positive=positive, latent=draw(1, 16, *CELLS, seed=9)))
    assert torch.isfinite(out).all()
    _, _, patched, _, same, _ = ask(node, "flux", grounding="off", caption="", clip=None)
    assert methods_of(patched)[0].spans == () and same[0][0].shape[1] == prompt.shape[1]


def test_off_and_a_drag_of_nothing_leave_the_model_alone(node):
    model, latent, patched, out, positive, _ = ask(node, strength=0.0)
    assert methods_of(patched) == () and out is latent and positive is model.positive
    model, latent, patched, out, positive, redrawn = ask(node, dx=3, dy=-3)
    assert methods_of(patched) == () and torch.equal(out["samples"], latent["samples"]) and not redrawn.any() and not out["noise_mask"].any()
    import comfy.sample

    result = comfy.sample.sample(
        patched, draw(1, 4, *CELLS, seed=2), 2, 3.0, "euler", "simple", model.positive, model.negative, latent["samples"], disable_pbar=True, seed=1, noise_mask=out["noise_mask"]
    )
    assert torch.allclose(result, latent["samples"], atol=1e-6), "sampled, it is the picture again"
    assert methods_of(ask(node, dx=0, dy=0, force_run=True)[2])[0].scene.rests(*CELLS)
    assert methods_of(ask(node, "sd3", dx=7, dy=0)[2]) == (), "a token of SD3 is two cells"
    assert methods_of(ask(node, "sd3", dx=9, dy=0, caption="", grounding="off")[2]) != ()


def test_outside_what_is_drawn_anew_the_latent_is_the_pictures(node):
    model, latent, patched, out, positive, redrawn = ask(node, "flux")
    import comfy.sample

    own = latent["samples"]
    result = comfy.sample.sample(
        patched, draw(*own.shape, seed=2), 3, 3.0, "euler", "simple", positive, model.negative, own, disable_pbar=True, seed=1, noise_mask=out["noise_mask"]
    )
    keep = redrawn[0] == 0
    assert 0 < int(keep.sum()) < keep.numel()
    # to rounding: the last step of a sampler and the model's own scaling of latents and back
    assert (result - own)[:, :, keep].abs().max() < 1e-5 and (result - own)[:, :, ~keep].abs().max() > 0.1
    assert (keep == (Blob.of_edges((8, 16, 40, 48), FRAME, "box").tokens(*CELLS) == 0) & keep).all()


# --- where it goes --------------------------------------------------------------------------------------------------------


def path(*boxes, width=96, height=64):
    keys = [{"frame": i, "box": list(b)} for i, b in enumerate(boxes)]
    return Tracks(frames=len(boxes), width=width, height=height, objects=Tracks.parse(_json(keys), len(boxes), width, height).objects)


def _json(keys):
    import json

    return json.dumps({"version": 1, "frames": len(keys), "width": 96, "height": 64, "objects": [{"name": "it", "keys": keys}]})


def test_a_drawn_path_is_the_drag(node):
    track = path((0.1, 0.25, 0.4, 0.75), (0.3, 0.25, 0.6, 0.75), (0.55, 0.3, 0.85, 0.8))
    (method,) = methods_of(ask(node, mask=None, track=track)[2])
    drag = method.scene.drag
    assert (drag.dx, drag.dy, drag.scale) == (pytest.approx(0.45 * 96), pytest.approx(0.05 * 64), pytest.approx(1.0))
    assert method.scene.objects[0].edges == pytest.approx((9.6, 16, 38.4, 48))
    (method,) = methods_of(ask(node, track=track)[2])
    assert method.scene.objects[0].edges == (8, 16, 40, 48) and method.scene.drag.dx == pytest.approx(0.45 * 96), "the mask says what, the path where to"
    grown = path((0.1, 0.25, 0.4, 0.75), (0.3, 0.1, 0.6, 0.85))
    assert methods_of(ask(node, mask=None, track=grown)[2])[0].scene.drag.scale == pytest.approx(1.5**0.5), "the mean growth of both sides"


def test_a_drawn_path_comes_from_the_editor(node):
    from attention_loom.nodes.track_editor import LoomTrackEditor

    text = _json([{"frame": 0, "box": [0.1, 0.25, 0.4, 0.75]}, {"frame": 1, "box": [0.5, 0.25, 0.8, 0.75]}])
    track = LoomTrackEditor.execute(text, 2, 96, 64).result[0]
    assert methods_of(ask(node, mask=None, track=track)[2])[0].scene.drag.dx == pytest.approx(0.4 * 96)


def test_a_target_is_a_centre_or_a_box():
    mask = painted()[0]

    def drag(target, shape="box"):
        return scene_of(mask, shape, 5, 5, 1.0, target, None, "x", "", None, 0.2).drag

    to = drag("0.75, 0.5")
    assert (to.dx, to.dy, to.scale) == (48, 0, 1)
    to = drag("0.5, 0.25, 1, 1", "ellipse")
    assert (to.dx, to.dy) == (pytest.approx(48), pytest.approx(8)) and to.scale == pytest.approx(1.5)
    for shape in ("ellipse", "mask"):
        leaning = torch.zeros(FRAME)
        leaning[16:32, 8:16], leaning[24:32, 8:40] = 1, 1
        scene = scene_of(leaning, shape, 0, 0, 1.0, "0.5, 0.5, 0.9, 0.8", None, "x", "", None, 0.2)
        left, top, right, bottom = scene.drag.edges(scene.objects[0])
        assert ((left + right) / 2, (top + bottom) / 2) == (pytest.approx(0.7 * 96), pytest.approx(0.65 * 64)), "the box lands there, wherever the weight of the object lies"
    plain = scene_of(mask, "box", 5, -6, 1.5, "", None, "", "", None, 0.2)
    assert (plain.drag.dx, plain.drag.dy, plain.drag.scale, plain.names) == (5, -6, 1.5, ("the object",))


# --- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(mask=painted(0, 0)), "the mask of the object is empty"),
        (dict(mask=torch.ones(1, *FRAME)), "covers the whole picture"),
        (dict(mask=None), "no mask is connected"),
        (dict(mask=torch.cat([painted(), painted()])), "connect one mask"),
        (dict(mask=painted()[:, :, :64]), "the mask is 64 x 64 pixels and the latent 12 x 8 cells"),
        (dict(mask=painted(16, 20, 8, 12)), "below one latent token"),
        (dict(dx=80), "out of the picture by 24 pixels on the right"),
        (dict(dx=-200, clip_to_frame=True), "altogether"),
        (dict(scale=5.0), "scale 5 was given"),
        (dict(scale=0.0), "scale 0 was given"),
        (dict(others="a cat @ 0.5, 0.25, 0.95, 0.85"), "puts 'a red vase' over"),
        (dict(others="a cat @ 0, 0, 0.2, 0.2\na dog @ 0, 0, 0.2, 0.2"), "'a cat' and 'a dog' have the same box"),
        (dict(caption=""), "the object has no caption"),
        (dict(clip=None), "captions need a text encoder"),
        (dict(grounding="gligen"), "the prompt has no GLIGEN boxes"),
        (dict(target="up there"), "'up there' is no target"),
        (dict(target="0.5, 0.5", track=path((0.1, 0.1, 0.3, 0.3), (0.5, 0.1, 0.7, 0.3))), "a target and a track were given"),
        (dict(mask=None, track=path((0.1, 0.1, 0.3, 0.3))), "in fewer than two frames"),
        (dict(latent={"samples": torch.zeros(1, 4, *CELLS)}), "the latent is empty"),
        (dict(latent={"samples": torch.ones(2, 4, *CELLS)}), "the latent holds 2 pictures"),
        (dict(latent={"samples": torch.ones(1, 4, *CELLS), "noise_mask": torch.ones(1, 8, 12)}), "has a noise mask already"),
        (dict(region_shape="star"), "region_shape 'star' was given"),
        (dict(anchor_schedule="later"), "anchor_schedule 'later' was given"),
        (dict(share_end=2.0), "share_end 2 was given"),
        (dict(source="memory"), "source 'memory' was given"),
    ],
)
def test_what_does_not_fit_is_said(node, settings, words):
    with pytest.raises(LoomError, match=words):
        ask(node, **settings)


def test_a_masked_prompt_is_not_joined(node):
    model = tiny_models.tiny("flux", latent=(1, 16, *CELLS))
    text, facts = model.positive[0]
    with pytest.raises(LoomError, match="carries a mask of its padding"):
        ask(node, "flux", positive=[[text, facts | {"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}]])


# --- a photograph ---------------------------------------------------------------------------------------------------------


def photograph():
    """A real one: the portrait among matplotlib's samples, [1, 128, 128, 3] in 0..1."""
    pytest.importorskip("matplotlib")
    from matplotlib import cbook
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB").crop((50, 0, 512, 462)).resize((128, 128))
    return torch.tensor(list(picture.getdata()), dtype=torch.float32).view(1, 128, 128, 3) / 255


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_a_photograph_goes_through_whole(node, name):
    """The toy world's model cannot draw a person: here counts that everything runs, and that the picture stays outside the drag."""
    from attention_loom.toyworld.bundles import BUNDLES, load, load_vae
    from attention_loom.toyworld.host import CHECKPOINTS

    bundle = BUNDLES[name]
    model, encoder = load(bundle, CHECKPOINTS)
    vae = load_vae(bundle, CHECKPOINTS)
    import comfy.sample

    latent = {"samples": vae.encode(photograph())}
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:72, 40:72] = 1
    positive, negative = (encoder.encode_from_tokens_scheduled(encoder.tokenize(text)) for text in ("a white circle on a grey background", ""))
    patched, out, positive, redrawn = node.LoomDiffUHaul.execute(
        model, positive, latent, mask=mask, dx=40, dy=8, scale=1.0, strength=1.0, caption="a white circle", clip=encoder, redraw_cells=1.0
    ).result
    noise = draw(*latent["samples"].shape, seed=3)
    told = bundle.settings
    result = comfy.sample.sample(
        patched, noise, 4, told.cfg, told.sampler, told.scheduler, positive, negative, latent["samples"], disable_pbar=True, seed=3, noise_mask=out["noise_mask"]
    )
    keep = redrawn[0] == 0
    change = (result - latent["samples"]).abs()
    assert torch.isfinite(result).all() and change[:, :, keep].max() < 1e-5 and change[:, :, ~keep].mean() > 0.05
    assert vae.decode(result).shape[-3:] == (128, 128, 3)
