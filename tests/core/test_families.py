"""Family adapters against the host's own models: every attention call is recognised, nothing changes until asked.

One table (``tiny_models.RECIPES``) for all families; the expected calls in it are written from the host's source.
"""

import inspect
import math
from collections import Counter
from dataclasses import dataclass
from itertools import groupby

import host_inprocess
import later_hosts
import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.call import Block
from attention_loom.core.errors import UnsupportedModel
from attention_loom.core.families import families, family_of
from observing import NOT_UNDERSTOOD, STEPS, Observer, observe, sentence, understood, words
from tiny_models import NAMES, tiny
from tiny_models import sample as run

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


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
    assert beside <= {"refiner", "layer_refiner", "context_refiner", "noise_refiner", "siglip_refiner", "ref_image_refiner", "vace"}


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


@pytest.mark.parametrize("name", ["wan", "flux", "hunyuan_video", "qwen_image", "ltx", "mochi", "aura_flow"])
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
    for name in ("flux", "qwen_image", "sd3", "lumina2", "mochi", "hidream", "omnigen2", "aura_flow", *tiny_models.here("boogu")):
        model = tiny(name, prompts=(6, 6))
        calls = observe(model)[1]
        assert [sentence(c) for c in calls][: len(calls) // STEPS] == model.facts.calls(6), name


def test_hidream_with_a_picture_to_edit_is_left_alone():
    """Its tokens stand between those of the generated picture, row by row, which no layout says."""
    model = tiny("hidream")
    edited = {"concat_latent_image": torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(1))}
    model = model._replace(positive=[[c, extra | edited] for c, extra in model.positive], negative=[[c, extra | edited] for c, extra in model.negative])
    out, calls, record = observe(model)
    assert torch.equal(out, run(model.patcher, model, STEPS)) and calls == []
    assert {(e.kind, e.reason.rpartition(" lies ")[2]) for e in record.entries} == {("call not understood", "beside the generated one, in the same rows of 6 tokens")}


@dataclass(frozen=True)
class Keys(Observer):
    """Keeps the keys of the first main block."""

    def contribute(self, call, draft):
        if call.block.ordinal == 0:
            draft.watch(self.owner, lambda seen: self.seen.append((call, seen.k.detach().clone())))


# Mochi modulates its video by the prompt as well, and HiDream-O1 does not read the conditioning but its tokens
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mochi", "hidream_o1", "hidream_o1_references")])
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


# --- what is not supported --------------------------------------------------------------------------------------------


def test_sd3_is_not_taken_for_aura_flow():
    """A base class of the one has the name of the other."""
    assert [f.name for f in families() if f.matches(tiny("sd3").patcher.model.diffusion_model)] == ["SD3"]


def test_an_unknown_model_is_named_with_what_is_supported():
    class SomebodysModel(torch.nn.Module):
        pass

    with pytest.raises(UnsupportedModel) as error:
        family_of(SomebodysModel())
    assert "SomebodysModel" in str(error.value)
    assert all(f.name in str(error.value) for f in families())


@pytest.mark.parametrize("name", ["WanModel_S2V", "WanAnimate2Model"])
def test_classes_that_cannot_be_hooked_are_refused_with_the_reason(name):
    cls = later_hosts.wan_class(name)
    if cls is None:
        pytest.skip(f"this host has no {name}")
    model = cls.__new__(cls)
    torch.nn.Module.__init__(model)
    if name == "WanModel_S2V" and later_hosts.hands_options_on(cls):
        assert family_of(model).name == "Wan"
        return
    with pytest.raises(UnsupportedModel, match=f"{name} cannot be used: .+ Use another Wan model"):
        family_of(model)


def a_model_out_of_reach(name):
    """(model of the host, arguments of a call)."""
    import comfy.ops
    from comfy.ldm.hydit.models import HunYuanDiT
    from comfy.ldm.pixart.pixartms import PixArtMS

    common = dict(hidden_size=32, depth=1, num_heads=2, patch_size=8, operations=comfy.ops.disable_weight_init)
    x, t, text = torch.randn(1, 4, 64, 64), torch.ones(1), torch.randn(1, 4, 8)
    if name == "PixArtMS":
        return PixArtMS(caption_channels=8, micro_condition=False, **common), (x, t, text), {}
    more = dict(text_embedding_mask=torch.ones(1, 4), encoder_hidden_states_t5=torch.randn(1, 4, 8), text_embedding_mask_t5=torch.ones(1, 4))
    return HunYuanDiT(input_size=None, text_states_dim=8, text_states_dim_t5=8, text_len=4, text_len_t5=4, **common), (x, t, text), more


@pytest.mark.parametrize("name", ["PixArtMS", "HunYuanDiT"])
def test_families_out_of_reach_are_refused_and_the_reason_holds(name):
    model, args, more = a_model_out_of_reach(name)
    tiny_models.randomise(model.eval())
    asked = Counter()

    def override(func, *args, **kwargs):
        asked["calls"] += 1
        return func(*args, **kwargs)

    assert torch.isfinite(model(*args, transformer_options={"optimized_attention_override": override}, **more)).all()
    assert not asked, f"this host lets packs reach {name}"
    with pytest.raises(UnsupportedModel, match=f"{name} cannot be used: .+ without the options"):
        family_of(model)


def test_every_class_an_adapter_names_exists_in_the_host():
    """But for those of later hosts: their adapters say so, or :data:`later_hosts.CLASSES` does."""
    host = host_inprocess.host_dir() / "comfy" / "ldm"
    source = "\n".join(p.read_text(encoding="utf-8") for p in host.rglob("*.py"))
    for family in families():
        later = "In hosts later than ComfyUI 0.3.75" in (inspect.getmodule(type(family)).__doc__ or "")
        for name in {*family.classes, *family.refused} - (set() if later else later_hosts.CLASSES):
            assert f"class {name}(" in source or (later and not later_hosts.newer()), name


def test_a_block_reads_as_the_user_writes_it():
    assert str(Block("double", 3)) == "double 3" and str(Block("input", 4, sub=1)) == "input 4.1"
