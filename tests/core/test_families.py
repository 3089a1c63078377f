"""Family adapters against the host's own models: every attention call is recognised, nothing changes until asked.

One table (``tiny_models.RECIPES``) for all families; the expected calls in it are written from the host's source.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import groupby

import host_inprocess
import later_hosts
import pytest
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.call import Block
from attention_loom.core.errors import UnsupportedModel
from attention_loom.core.families import families, family_of
from attention_loom.core.methods.base import Method
from attention_loom.core.methods.riflex import frame_times
from attention_loom.kernels.plan import Rotation
from observing import NOT_UNDERSTOOD, Observer, sentence, understood, words
from tiny_models import NAMES, tiny
from tiny_models import sample as run

pytestmark = pytest.mark.host

STEPS = 2


@pytest.fixture(scope="module", autouse=True)
def host():
    host_inprocess.import_host()


@pytest.fixture(autouse=True)
def as_the_server_does(host):
    with torch.inference_mode():
        yield


def observe(model, patcher=None, **more):
    """(latent, calls, run) of a sampling run with an observer on the model."""
    observer = Observer()
    patched = attach(patcher or model.patcher, observer)
    out = run(patched, model, STEPS, **more)
    return out, observer.seen, record_of(patched).last


def one_model_call(calls):
    """The calls of the first model call of each group of batch rows."""
    chunks = [list(group) for _, group in groupby(calls, key=lambda c: (c.sigma, c.rows))]
    return [[sentence(c) for c in chunk] for chunk in chunks]


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [None, (5, 3)], ids=["", "unequal_prompts"])
@pytest.mark.parametrize("name", NAMES)
def test_every_call_is_recognised_and_nothing_changes(name, prompts):
    model = tiny(name, prompts)
    stock = run(model.patcher, model, STEPS)
    out, calls, record = observe(model)
    assert torch.equal(out, stock)

    stranger = [f"{e.kind}: {e.reason}" for e in record.entries if e.kind in NOT_UNDERSTOOD]
    assert stranger == []
    assert sum(record.entries.values()) == len(calls) and not any(e.planned for e in record.entries)
    assert record.grid == model.facts.grid

    lengths = [cond[0][0].shape[1] for cond in (model.positive, model.negative)]
    for rows, group in groupby(calls, key=lambda c: (c.sigma, c.rows)):
        text = math.lcm(*(lengths[r] for r in rows[1]))
        assert [sentence(c) for c in group] == model.facts.calls(text)
    assert {r for c in calls for r in c.rows} == {0, 1}
    assert {c.heads for c in calls} == ({1} if name == "svd" else {model.facts.heads})
    assert {c.family for c in calls} == {model.facts.family}


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_numbered_in_order_of_execution(name):
    model = tiny(name)
    blocks = family_of(model.patcher.model.diffusion_model).blocks(model.patcher.model.diffusion_model)
    assert [b.ordinal for b in blocks] == list(range(len(blocks))) and {b.total for b in blocks} == {len(blocks)}

    calls = observe(model)[1]
    ran = [c.block for c in calls if c.block.ordinal >= 0]
    one_pass = [b for b, _ in groupby(ran)]
    assert one_pass == blocks * (len(one_pass) // len(blocks))
    beside = {c.block.kind for c in calls if c.block.ordinal < 0}
    assert beside <= {"refiner", "context_refiner", "noise_refiner", "vace"}


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_told_from_a_video(name):
    model = tiny(name)
    diffusion = model.patcher.model.diffusion_model
    family = family_of(diffusion)
    assert family.geometry(diffusion, model.latent, None, {}).still == (model.facts.still or name == "svd")  # alone, SVD's frames are a batch
    if family.video and model.latent.ndim == 5:
        assert family.geometry(diffusion, model.latent[:, :, :1], None, {}).still
    with pytest.raises(IndexError):
        family.geometry(diffusion, torch.zeros(1, 16, 4), None, {})


@pytest.mark.parametrize("name", ["wan_vace", "sd3", "z_image", "cosmos", "sd15"])
def test_the_model_without_the_node_is_as_before(name):
    model = tiny(name)
    stock = run(model.patcher, model, STEPS)
    observe(model)
    assert torch.equal(run(model.patcher, model, STEPS), stock)


@pytest.mark.parametrize("name", ["wan", "flux", "sd3", "z_image", "cosmos", "sd15", "hunyuan_video", "mochi"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_with_another_packs_override(name, order):
    """A pack that simply assigns the override keeps working, and so do we, in either order of nodes."""
    model = tiny(name)
    theirs = Counter()

    def override(func, *args, **kwargs):
        theirs["calls"] += 1
        return func(*args, **kwargs)

    def assign(patcher):
        patcher = patcher.clone()
        patcher.model_options["transformer_options"] = patcher.model_options["transformer_options"] | {"optimized_attention_override": override}
        return patcher

    observer = Observer()
    patched = attach(assign(model.patcher), observer) if order == "before" else assign(attach(model.patcher, observer))
    out = run(patched, model, STEPS)
    assert torch.equal(out, run(model.patcher, model, STEPS))
    assert len(observer.seen) == theirs["calls"] > 0
    assert understood(record_of(patched).last)


@pytest.mark.parametrize("name", ["wan", "flux", "hunyuan_video", "qwen_image", "ltx", "mochi"])
def test_with_another_packs_block_replace(name):
    """Ours composes with a block replace that is there, and one that comes later sees the same calls."""
    model = tiny(name)
    ran = Counter()

    def replace(args, extra):
        ran["blocks"] += 1
        return extra["original_block"](args)

    patcher = model.patcher.clone()
    patcher.set_model_patch_replace(replace, "dit", "double_block", 0)
    out, calls, record = observe(model, patcher)
    assert torch.equal(out, run(model.patcher, model, STEPS)) and ran["blocks"] == STEPS and understood(record)
    assert [sentence(c) for c in calls][: len(calls) // STEPS] == model.facts.calls(5)


# --- where shapes alone would mislead ---------------------------------------------------------------------------------


def test_wan_with_as_many_video_as_text_tokens():
    model = tiny("wan", prompts=(18, 18))
    out, calls, record = observe(model)
    assert torch.equal(out, run(model.patcher, model, STEPS)) and understood(record)
    assert [c.kind for c in calls] == ["self", "cross"] * (len(calls) // 2)
    assert {words(c.k) for c in calls if c.kind == "cross"} == {"text18"}


def test_vace_with_as_many_video_as_text_tokens():
    calls = observe(tiny("wan_vace", prompts=(18, 18)))[1]
    assert [c.kind for c in calls if c.block.kind == "vace"] == ["self", "cross"] * STEPS


@pytest.mark.parametrize("name", ["ltx", "cosmos", "cosmos_predict2"])
def test_cross_families_with_as_many_video_as_text_tokens(name):
    calls = observe(tiny(name, prompts=(18, 18)))[1]
    assert [c.kind for c in calls] == ["self", "cross"] * (len(calls) // 2)


def test_unet_with_as_many_pixels_as_text_tokens():
    model = tiny("sd15", prompts=(77, 77), latent=(1, 4, 7, 11))
    out, calls, record = observe(model)
    assert torch.equal(out, run(model.patcher, model, STEPS)) and understood(record)
    largest = [c for c in calls if c.q.length == 77]
    assert largest and [c.kind for c in largest] == ["self", "cross"] * (len(largest) // 2)
    assert {words(c.k) for c in largest} == {"image1x7x11", "text77"}


def test_video_unet_with_as_many_frames_as_pixels():
    """Over space the batch is 24 frames, over time 24 pixels: only the order tells."""
    model = tiny("svd", latent=(24, 4, 4, 6))
    calls = observe(model)[1]
    top = [words(c.q) for c in calls if c.block.kind == "input" and c.block.index == 1 and c.kind == "self"]
    assert top == ["image1x4x6", "video24x1x1"] * STEPS


def test_text_as_long_as_the_picture_in_joint_families():
    for name in ("flux", "qwen_image", "sd3", "lumina2", "mochi"):
        model = tiny(name, prompts=(6, 6))
        calls = observe(model)[1]
        assert [sentence(c) for c in calls][: len(calls) // STEPS] == model.facts.calls(6), name


@dataclass(frozen=True)
class Keys(Observer):
    """Keeps the keys of the first main block."""

    def contribute(self, call, draft):
        if call.block.ordinal == 0:
            draft.watch(self.owner, lambda seen: self.seen.append((call, seen.k.detach().clone())))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mochi"])  # Mochi modulates its video by the prompt as well
def test_the_text_stands_where_the_layout_says(name):
    """Another prompt changes keys of the first block that the layout calls text (or what pads it), and no others."""
    model = tiny(name)
    kept = []
    for sign in (1, -1):
        keys = Keys()
        run(attach(model.patcher, keys), model._replace(positive=[[sign * cond, extra] for cond, extra in model.positive]), 1, cfg=1.0)
        kept.append(keys.seen)
    found = 0
    for (call, one), (_, two) in zip(*kept, strict=True):
        if call.kind == "self":
            continue
        changed = (one - two).abs().amax((0, 1, 3)) > 0
        kinds = [span.kind for span in call.k.spans for _ in range(span.length)]
        assert {k for k, c in zip(kinds, changed.tolist(), strict=True) if c} <= {"text", "other"}, kinds
        text = call.k.range("text")
        if text is not None:
            assert bool(changed[text[0] : text[1]].any())  # not all: some families pad a prompt with zeros
            found += 1
    assert found


# --- what else runs on these models -----------------------------------------------------------------------------------


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
    assert {words(c.q) for c in calls} == {"video3x2x3 other12"}


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


# --- what is not supported --------------------------------------------------------------------------------------------


def test_an_unknown_model_is_named_with_what_is_supported():
    class PixArtMS(torch.nn.Module):
        pass

    with pytest.raises(UnsupportedModel) as error:
        family_of(PixArtMS())
    assert "PixArtMS" in str(error.value)
    assert all(f.name in str(error.value) for f in families())


@pytest.mark.parametrize("name", ["WanModel_S2V", "HumoWanModel", "AnimateWanModel"])
def test_classes_that_cannot_be_hooked_are_refused_with_the_reason(name):
    import comfy.ldm.wan.model
    import comfy.ldm.wan.model_animate

    cls = getattr(comfy.ldm.wan.model, name, None) or getattr(comfy.ldm.wan.model_animate, name)
    model = cls.__new__(cls)
    torch.nn.Module.__init__(model)
    with pytest.raises(UnsupportedModel, match=f"{name} cannot be used: .+ Use another Wan model"):
        family_of(model)


def test_every_class_an_adapter_names_exists_in_the_host():
    host = host_inprocess.host_dir() / "comfy" / "ldm"
    source = "\n".join(p.read_text(encoding="utf-8") for p in host.rglob("*.py"))
    later = set() if (host / "lightricks" / "av_model.py").is_file() else {"LTXAVModel"}
    for family in families():
        for name in {*family.classes, *family.refused} - later:
            assert f"class {name}(" in source, name


# --- rotary positions -------------------------------------------------------------------------------------------------

ROPE = ["wan", "hunyuan_video", "ltx", "cosmos", "cosmos_predict2"]
FRAMES = {"ltx": (1, 128, 9, 2, 3)}


def stock_rotations(name, diffusion, frames, rate=None, causal=False):
    """[T, H|1, D/2, 2, 2] of the host: rotation of every channel pair of the first token of each frame."""
    if name == "wan":
        return diffusion.rope_encode(frames, 4, 6, device="cpu", dtype=torch.float32)[0, ::6].double()
    if name == "hunyuan_video":
        return diffusion.pe_embedder(diffusion.img_ids(torch.zeros(1, 16, frames, 4, 6)))[0, 0, ::6].unsqueeze(1).double()
    if name == "ltx":
        import comfy.ldm.lightricks.model as ltx

        _, where = diffusion.patchifier.patchify(torch.zeros(1, 1, frames, 2, 3))
        pixels = ltx.latent_to_pixel_coords(where, diffusion.vae_scale_factors, causal).double()
        pixels[:, 0] /= rate or 25.0
        owner, table = later_hosts.ltx_table(diffusion)
        more = {} if owner is ltx else {"use_middle_indices_grid": diffusion.use_middle_indices_grid, "num_attention_heads": 2}
        made = later_hosts.ltx_rotations(getattr(owner, table)(pixels, diffusion.inner_dim, torch.float64, **more))[::6]
        return made if made.shape[1] > 1 else made[:, 0].unflatten(1, (2, -1))
    return diffusion.pos_embedder(torch.zeros(1, frames, 2, 3, 64), fps=rate)[::6].unsqueeze(1).double()


@pytest.mark.parametrize(
    ("name", "rate", "causal"),
    [(n, None, False) for n in ROPE] + [("ltx", 24.0, False), ("ltx", None, True), ("cosmos", 12, False), ("cosmos_predict2", 12, False)],
)
def test_rope_describes_the_hosts_temporal_angles(name, rate, causal, monkeypatch):
    diffusion = tiny(name).patcher.model.diffusion_model
    if causal:
        monkeypatch.setattr(diffusion, "causal_temporal_positioning", True)
    frames = 7
    stock = stock_rotations(name, diffusion, frames, rate, causal)
    axis = family_of(diffusion).rope(diffusion, {"frame_rate": rate, "fps": rate})
    assert (axis.per_frame.diff() < 0).all() and axis.times(frames).shape == (frames,)
    width = stock.shape[2]
    assert axis.pair_of.shape in ((1, width), (stock.shape[1], width))

    known = axis.pair_of >= 0
    speed = torch.where(known, axis.per_frame[axis.pair_of.clamp(min=0)], 0.0)
    angle = (axis.times(frames) - axis.times(frames)[0])[:, None, None] * speed
    # relative to frame 0: R(t) R(0)^T, which a constant offset of the angle does not touch
    relative = stock @ stock[:1].transpose(-1, -2)
    expected = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    # the host computes LTX's fastest angles (thousands of radians) in single precision
    assert torch.allclose(relative, expected, atol=5e-3 if name == "ltx" else 1e-5)


@dataclass(frozen=True)
class Turn(Method):
    """Scales one temporal frequency, by relative rotation."""

    owner = "turn"
    index: int = 0
    factor: float = 1.5

    def wants(self, call):
        return call.kind in ("self", "joint") and call.rope is not None

    def contribute(self, call, draft):
        axis = call.rope
        freqs = (axis.pair_of == self.index).float()[None] * float(axis.per_frame[self.index]) * (self.factor - 1)
        times = [frame_times(layout, axis, "cpu") for layout in (call.q, call.k)]
        draft.rotate(self.owner, Rotation(*times, freqs, axis.pairing))


class Spliced(torch.nn.Module):
    """The host's embedder with one temporal frequency scaled: that channel pair taken from scaled positions."""

    def __init__(self, embedder, index, factor):
        super().__init__()
        object.__setattr__(self, "embedder", embedder)
        self.index, self.factor, self.axes_dim, self.theta = index, factor, embedder.axes_dim, embedder.theta

    def forward(self, ids):
        moved = ids.clone()
        moved[..., 0] *= self.factor
        out = self.embedder(ids)
        out[..., self.index, :, :] = self.embedder(moved)[..., self.index, :, :]
        return out


def hosts_own_way(name, model, index, factor, monkeypatch):
    """The latent when the host's positional embedding itself is changed."""
    patcher = model.patcher.clone()
    diffusion = model.patcher.model.diffusion_model
    if name in ("wan", "hunyuan_video"):
        slot = "rope_embedder" if name == "wan" else "pe_embedder"
        patcher.add_object_patch(f"diffusion_model.{slot}", Spliced(getattr(diffusion, slot), index, factor))
        return run(patcher, model, 1)
    if name == "ltx":
        owner, table = later_hosts.ltx_table(diffusion)
        original = getattr(owner, table)
        pair = diffusion.inner_dim % 6 // 2 + 3 * (diffusion.inner_dim // 6 - 1 - index)

        def precompute(grid, *args, **kwargs):
            moved = grid.clone()
            moved[:, 0] *= factor
            theirs = original(moved, *args, **kwargs)
            source = theirs[0] if isinstance(theirs, tuple) else theirs

            def splice(rotations, axis):
                heads = rotations.shape[2] if axis == 1 else 1  # heads told apart lie side by side in the whole width
                head, place = divmod(pair, diffusion.inner_dim // 2 // heads)
                where = (..., head, place, slice(None), slice(None)) if axis == 1 else (..., pair, slice(None), slice(None))
                rotations[where] = source[where]
                return rotations

            return later_hosts.on_ltx_table(original(grid, *args, **kwargs), splice)

        with monkeypatch.context() as patch:
            patch.setattr(owner, table, precompute)
            return run(patcher, model, 1)
    original = diffusion.pos_embedder.generate_embeddings

    def generate(shape, **kwargs):
        b, t, h, w, c = shape
        out = original(shape, **kwargs).unflatten(0, (t, h, w))
        wide = original((b, t * int(factor), h, w, c), **kwargs).unflatten(0, (t * int(factor), h, w))
        out[..., index, :, :] = wide[:: int(factor), ..., index, :, :]
        return out.flatten(0, 2)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion.pos_embedder, "generate_embeddings", generate)
        return run(patcher, model, 1)


@pytest.mark.parametrize("index", [0, 1, -1])
@pytest.mark.parametrize("name", ROPE)
def test_relative_rotation_equals_changing_the_hosts_embedding(name, index, monkeypatch):
    model = tiny(name, latent=FRAMES.get(name, (1, 16, 9, 4, 6)))
    diffusion = model.patcher.model.diffusion_model
    speeds = family_of(diffusion).rope(diffusion).per_frame
    if name == "ltx" and index == 0:
        index = len(speeds) // 2  # the fastest angles are beyond single precision in the host itself
    index %= len(speeds)
    factor = max(2.0, round(1 / (4 * float(speeds[index]))))  # enough to see even of the slowest
    stock = run(model.patcher, model, 1)
    theirs = hosts_own_way(name, model, index, factor, monkeypatch)
    patched = attach(model.patcher, Turn(index, factor))
    ours = run(patched, model, 1)
    assert understood(record_of(patched).last) and record_of(patched).last.touched["turn"] > 0

    def apart(a, b):
        return float((a - b).norm() / b.norm())

    assert apart(ours, theirs) < 1e-5
    assert apart(stock, theirs) > 1e-4


@pytest.mark.parametrize("name", ["mochi", "flux", "sd3", "sd15", "hunyuan_image"])
def test_models_without_a_temporal_axis_have_none(name):
    diffusion = tiny(name).patcher.model.diffusion_model
    assert family_of(diffusion).rope(diffusion) is None


def test_a_block_reads_as_the_user_writes_it():
    assert str(Block("double", 3)) == "double 3" and str(Block("input", 4, sub=1)) == "input 4.1"
