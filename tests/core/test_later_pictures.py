"""Picture models of later hosts: what the table of families cannot say of them."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import host_inprocess
import pytest
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.call import Block
from attention_loom.core.errors import LoomError, UnsupportedModel
from attention_loom.core.families import family_of
from attention_loom.core.families.anima import Anima
from attention_loom.core.families.krea import Krea
from attention_loom.core.families.pixeldit import PixelDiT
from attention_loom.core.methods.entropy_scale import EntropyScale
from observing import Observer, observe, sentence, understood, words
from softpag_runs import softpag
from test_sparse import sparse
from tiny_models import here, tiny
from tiny_models import sample as run

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


@pytest.mark.parametrize("name", here("krea2", "ideogram4", "lens", "joyimage", "mage_flow", "z_image_pixel", "pixeldit"))
def test_text_as_long_as_the_picture(name):
    model = tiny(name, prompts=(6, 6))
    calls = observe(model)[1]
    assert [sentence(c) for c in calls][: len(calls) // 2] == model.facts.calls(6)


@pytest.mark.parametrize("name", here("krea2"))
def test_a_prompt_with_as_many_tokens_as_the_encoder_has_layers(name):
    model = tiny(name, prompts=(3, 3))
    calls = observe(model)[1]
    assert [sentence(c) for c in calls][: len(calls) // 2] == model.facts.calls(3)
    fused = [c for c in calls if c.block.kind == "layer_refiner"]
    assert {c.batch for c in fused} == {6} and {c.kind for c in fused} == {"other"}, "a batch element per token"


@pytest.mark.parametrize("name", here("lens"))
def test_lens_makes_an_empty_negative_prompt_of_no_tokens(name):
    model = tiny(name, prompts=(5, 0))
    out, calls, record = observe(model)
    assert torch.equal(out, run(model.patcher, model)) and understood(record)
    assert {(c.rows, words(c.q)) for c in calls} == {((0,), "image1x2x3 text5"), ((1,), "image1x2x3")}


@pytest.mark.parametrize("name", here("pixeldit"))
def test_a_shorter_prompt_is_repeated_in_one_batch_with_a_longer(name):
    calls = observe(tiny(name, prompts=(6, 3)))[1]
    assert {(len(c.rows), words(c.k)) for c in calls if c.kind == "joint"} == {(2, "text6 image1x2x3")}


@pytest.mark.parametrize("name", here("anima"))
def test_anima_reads_its_conditioning_in_a_language_of_its_own(name):
    """The conditioning has the width of what the blocks read, so that its projections would run, on the wrong thing."""
    model = tiny(name)
    diffusion = model.patcher.model.diffusion_model
    assert diffusion.blocks[0].cross_attn.k_proj.in_features == model.positive[0][0].shape[-1]
    assert family_of(diffusion).text_width(diffusion) is None
    assert {c.project for c in observe(model)[1]} == {None}


def test_animas_text_where_the_host_leaves_it_to_the_model():
    model = SimpleNamespace(patch_spatial=2, patch_temporal=1)
    latent, prompt = torch.zeros(1, 16, 1, 4, 6), torch.zeros(1, 5, 1024)
    for ids, length in ((None, 5), (torch.zeros(1, 7), 512), (torch.zeros(1, 600), 600)):
        laid = Anima().geometry(model, latent, prompt, {} if ids is None else {"t5xxl_ids": ids})
        assert words(laid.prompt) == f"text{length}" and words(laid.sequence) == "image1x2x3"


@pytest.mark.parametrize("name", here("anima"))
def test_anima_with_the_adapter_inside_the_model_call(name):
    """Outside of inference mode the host hands the tokens on and the model runs its adapter itself."""
    model = tiny(name)
    patched = attach(model.patcher, observer := Observer())
    import comfy.model_base

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_base.torch, "is_inference_mode_enabled", lambda: False)
        out = run(patched, model, 1)
    assert torch.equal(out, run(model.patcher, model, 1)) and understood(record_of(patched).last)
    assert [sentence(c) for c in observer.seen] == model.facts.calls(5)


def test_kreas_references_count_only_with_a_method():
    model = SimpleNamespace(patch=2, default_ref_method=None)
    latent, prompt, reference = torch.zeros(1, 16, 1, 4, 6), torch.zeros(1, 5, 48), [torch.zeros(1, 16, 1, 4, 4)]
    plain = Krea().geometry(model, latent, prompt, {"ref_latents": reference})
    told = Krea().geometry(model, latent, prompt, {"ref_latents": reference, "ref_latents_method": "index"})
    model.default_ref_method = "index"
    assert words(plain.sequence) == "text5 image1x2x3"
    assert words(told.sequence) == words(Krea().geometry(model, latent, prompt, {"ref_latents": reference}).sequence) == "text5 image1x2x3 reference4"


@pytest.mark.parametrize("name", here("ideogram4_padded_text"))
def test_ideograms_mask_of_pairs_leaves_its_calls_alone(name):
    model = tiny(name)
    patched = attach(model.patcher, sparse("sla_topk"))
    assert torch.equal(run(patched, model), run(model.patcher, model))
    assert any("differs from query to query" in warning for warning in record_of(patched).last.warnings)


@pytest.mark.parametrize("name", here("ideogram4"))
def test_ideogram_without_a_text_is_the_picture_alone(name):
    diffusion = tiny(name).patcher.model.diffusion_model
    laid = family_of(diffusion).geometry(diffusion, torch.zeros(1, 128, 2, 3), None, {})
    assert words(laid.sequence) == "image1x2x3" and laid.prompt.length == 0


def test_pixeldits_blocks_have_heads_of_their_own():
    model = SimpleNamespace(num_groups=24, pixel_num_groups=16, patch_blocks=[0] * 14, pixel_blocks=[0] * 2)
    blocks = PixelDiT().blocks(model)
    assert [str(b) for b in blocks[-3:]] == ["patch 13", "pixel 0", "pixel 1"]
    assert {PixelDiT().heads(model, b) for b in blocks[:14]} == {24} and {PixelDiT().heads(model, b) for b in blocks[14:]} == {16}
    assert PixelDiT().heads(model, Block("patch", 0)) == 24


@pytest.mark.parametrize("name", here("pixeldit"))
def test_blocks_on_pixels_are_not_taken_over(name):
    """Their batch is of patches: with two conditionings in it, its rows cannot be cut by conditioning."""
    model = tiny(name)
    plain, taken = (run(attach(model.patcher, replace(softpag("3:0", u=1.0), reuse=reuse)), model) for reuse in (False, True))
    assert (plain - taken).abs().max() < 1e-5 * plain.abs().max()


def test_ernie_is_refused_with_the_reason():
    if not (host_inprocess.host_dir() / "comfy" / "ldm" / "ernie").is_dir():
        pytest.skip("this host has no ERNIE-Image")
    from comfy.ldm.ernie.model import ErnieImageModel

    model = ErnieImageModel.__new__(ErnieImageModel)
    torch.nn.Module.__init__(model)
    with pytest.raises(UnsupportedModel, match="ErnieImageModel cannot be used: ERNIE-Image calls its attention without the options"):
        family_of(model)


@pytest.mark.parametrize("name", here("z_image_pixel_references"))
def test_the_text_behind_z_images_reference_pictures(name):
    """The host runs it only with one conditioning in the batch."""
    model = tiny(name)
    ((prompt, facts),) = model.positive
    behind = torch.ones(1, 4, prompt.shape[-1])
    model = model._replace(positive=[[prompt, facts | {"reference_latents_text_embeds": [*facts["reference_latents_text_embeds"], behind]}]])
    out, calls, record = observe(model, cfg=1.0)
    assert understood(record) and torch.equal(out, run(model.patcher, model, cfg=1.0))
    assert {words(c.k) for c in calls if c.block.kind == "context_refiner"} == {"other2 other30 other1 other31 text5 other27 other4 other28"}


# --- HiDream-O1 -------------------------------------------------------------------------------------------------------

HIDREAM_O1 = here("hidream_o1", "hidream_o1_references")


@dataclass(frozen=True)
class Keys(Observer):
    """Keeps the keys of the first block."""

    def contribute(self, call, draft):
        if call.block.ordinal == 0:
            draft.watch(self.owner, lambda seen: self.seen.append((call, seen.k.detach().clone())))


def keys_of(model, prompt, steps=1):
    method = Keys()
    run(attach(model.patcher, method), model._replace(positive=[[cond, extra | {"text_input_ids": prompt}] for cond, extra in model.positive]), steps, cfg=1.0)
    return method.seen


@pytest.mark.parametrize("name", HIDREAM_O1)
def test_the_text_of_hidream_o1_stands_where_the_layout_says(name):
    model = tiny(name)
    ids = model.positive[0][1]["text_input_ids"]
    other = ids.clone()
    other[:, 3:-1] = (ids[:, 3:-1] + 7) % 150000
    ((call, one),), ((_, two),) = keys_of(model, ids), keys_of(model, other)
    changed = (one - two).abs().amax((0, 1, 3)) > 0
    text = torch.tensor([s.kind == "text" for s in call.k.spans for _ in range(s.length)]).nonzero().flatten()
    assert len(text) == ids.shape[1], "a key per token of the prompt"
    assert changed.nonzero().flatten().tolist() == text[3:-1].tolist(), "less the template and the token for the time"


@pytest.mark.parametrize("name", HIDREAM_O1)
def test_keys_hidream_o1_keeps_from_the_first_step_are_the_same_call(name):
    """From the second step on the host computes the prompt no more and puts kept keys in front."""
    model = tiny(name)
    model.patcher.model.diffusion_model.clear_kv_cache()
    (first, one), (second, two) = keys_of(model, model.positive[0][1]["text_input_ids"] + 0, steps=2)
    assert first.q == second.q and first.k == second.k
    kept = first.k.length - first.q.length
    assert kept > 0
    assert torch.allclose(one[:, :, :kept], two[:, :, :kept], atol=1e-6) and not torch.allclose(one[:, :, kept:], two[:, :, kept:], atol=1e-3)


@pytest.mark.parametrize("name", HIDREAM_O1)
def test_methods_for_square_attention_say_that_they_find_none_in_hidream_o1(name, caplog):
    model = tiny(name)
    assert torch.equal(run(attach(model.patcher, sparse("sla_topk")), model), run(model.patcher, model))
    assert "changed nothing in this run" in caplog.text
    with pytest.raises(LoomError, match="could not change any attention"):
        run(attach(model.patcher, softpag()), model)


@pytest.mark.parametrize("name", HIDREAM_O1)
def test_a_factor_on_the_logits_reaches_hidream_o1(name):
    model = tiny(name)
    patched = attach(model.patcher, EntropyScale(trained=((1, 4, 6),)))
    out = run(patched, model)
    assert torch.isfinite(out).all() and not torch.equal(out, run(model.patcher, model)) and understood(record_of(patched).last)
