"""IR-Diffusion's nodes: prompts, latents and masks in one batch, from places and words to a scene."""

import pytest
import tiny_models
import torch
from attention_loom.core.attach import methods_of, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.subject_batch import before, latents, prompts
from ir_scene import LATENT, REFERENCES, SCENE, box

# --- one batch --------------------------------------------------------------------------------------------------------


def text(seed, n=5, **facts):
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, n, 8, generator=g), {"pooled_output": torch.randn(1, 4, generator=g)} | facts]]


def test_references_and_scene_in_one_batch():
    scene, portraits = text(0, guidance=3.5), [text(1), text(2)]
    ((rows, facts),) = prompts(scene, portraits, 2)
    assert rows.shape == (4, 5, 8) and facts["pooled_output"].shape == (4, 4) and facts["guidance"] == 3.5
    for row, source in zip(rows, (*portraits, scene, scene), strict=True):
        assert torch.equal(row, source[0][0][0])
    made = latents({"samples": torch.zeros(2, 4, 8, 8)}, 2)
    assert made["samples"].shape == (4, 4, 8, 8) and made["batch_index"] == [2, 2, 0, 1]
    own = torch.randn(2, 4, 8, 8)
    assert torch.equal(latents({"samples": torch.zeros(1, 4, 8, 8)}, 2, {"samples": own})["samples"][:2], own)
    for act, words in (
        (lambda: prompts(scene, [text(1, 6)], 1), "portrait 1 prompt has 6 tokens of width 8 and the scene prompt 5"),
        (lambda: prompts(scene * 2, portraits, 1), "scene prompt consists of 2 conditionings"),
        (lambda: prompts(scene, [text(1, area=(1, 1, 0, 0))], 1), "portrait 1 prompt carries 'area'"),
        (lambda: prompts(text(0, attention_mask=torch.ones(1, 5)), portraits, 1), "carry a mask of their padding"),
        (lambda: prompts(scene, [text(1)] * 17, 1), "17 portraits were given and 16 fit"),
        (lambda: latents({"samples": torch.zeros(1, 4, 8, 8), "noise_mask": 1}, 2), "has a noise mask"),
        (lambda: latents({"samples": torch.zeros(1, 4, 8, 8)}, 2, {"samples": torch.zeros(2, 16, 8, 8)}), r"the references' latent is \(16, 8, 8\) and the scene's \(4, 8, 8\)"),
        (lambda: latents({"samples": torch.zeros(1, 4, 8, 8)}, 2, {"samples": torch.zeros(1, 4, 8, 8)}), "2 portrait prompts and 1 reference latents"),
    ):
        with pytest.raises(LoomError, match=words):
            act()


@pytest.mark.host
def test_the_scene_keeps_the_noise_it_has_alone(host):
    import comfy.sample

    made = latents({"samples": torch.zeros(1, 4, 8, 8)}, 2)
    noise = comfy.sample.prepare_noise(made["samples"], 9, made["batch_index"])
    assert torch.equal(noise[2:], comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), 9))
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


# --- the nodes --------------------------------------------------------------------------------------------------------


@pytest.mark.host
def test_from_prompts_and_places_to_a_scene(host):
    from attention_loom.nodes.ir_diffusion import LoomIRDiffusion, LoomPlaceMasks, LoomSubjectBatch

    model = tiny_models.tiny("sd3", prompts=(5, 5))
    g = torch.Generator().manual_seed(8)
    texts = [[[torch.randn(1, 5, 48, generator=g), {"pooled_output": torch.randn(1, 32, generator=g)}]] for _ in range(4)]
    latent = {"samples": torch.zeros(1, 16, 8, 12)}
    positive, negative, made, count = LoomSubjectBatch.execute(texts[0], texts[1], latent, portrait_1=texts[2], portrait_2=texts[3]).result
    assert count == 2 and positive[0][0].shape == negative[0][0].shape == (3, 5, 48) and torch.equal(negative[0][0][0], negative[0][0][2])
    (scene,) = LoomPlaceMasks.execute("a @ left\nb @ 0.6, 0, 1, 1", 96, 64, 0.3).result
    (own,) = LoomPlaceMasks.execute("a @ center\nb @ center", 96, 64, 0.4).result
    assert scene.shape == (2, 64, 96) and set(scene.unique().tolist()) == {0.0, 1.0}
    (patched,) = LoomIRDiffusion.execute(model.patcher, scene, own, min_mask=0.0, start_layer=0).result
    (m,) = methods_of(patched)
    assert torch.equal(m.scene, scene[None]) and torch.equal(m.references, own)
    whole = model._replace(positive=positive, negative=negative, latent=made["samples"])
    stock, ours = (tiny_models.sample(p, whole) for p in (model.patcher, patched))
    assert torch.equal(ours[:2], stock[:2]) and not torch.equal(ours[2], stock[2])
    (off,) = LoomIRDiffusion.execute(model.patcher, scene, own, strength=0.0).result
    assert methods_of(off) == ()


@pytest.mark.host
def test_the_node_makes_masks_ready(host):
    from attention_loom.nodes.ir_diffusion import LoomPlaceMasks, configure

    small = torch.stack([box(0.4, 0.5, 0.1, 0.2), box(0, 1, 0.5, 1)])
    m = configure(small, REFERENCES, min_mask=0.5, trim_reference_bottom=0.25)
    assert int(m.scene[0, 0].sum()) > int(small[0].sum()) and m.references[:, 24:].sum() == 0
    assert configure(torch.cat([small, small]), REFERENCES).scene.shape == (2, 2, 32, 48), "two scenes"
    deep = torch.stack([box(0, 1, 0, 0.7), box(0, 1, 0.5, 1)])
    for act, words in (
        (lambda: configure(torch.cat([small, small[:1]]), REFERENCES), "3 scene masks and 2 reference masks"),
        (lambda: configure(deep, REFERENCES), "overlap in 42%"),
        (lambda: configure(deep, REFERENCES, overlap="x"), "overlap 'x' was given"),
        (lambda: configure(small, REFERENCES, references="x"), "references 'x' was given"),
        (lambda: LoomPlaceMasks.execute("", 64, 64), "no place was given"),
    ):
        with pytest.raises(LoomError, match=words):
            act()


def test_more_portraits_join_a_batch():
    scene, negative = text(0), text(9)
    first = latents({"samples": torch.zeros(2, 4, 8, 8)}, 2)
    positive, against = prompts(scene, [text(1), text(2)], 2), prompts(negative, [negative] * 2, 2)
    assert before(first) == 2
    both = latents(first, 1)
    assert both["samples"].shape[0] == 5 and both["batch_index"] == [2, 2, 2, 0, 1] and before(both) == 3
    ((rows, facts),) = prompts(positive, [text(3)], 4, 2)
    for row, pooled, source in zip(rows, facts["pooled_output"], (text(1), text(2), text(3), scene, scene), strict=True):
        assert torch.equal(row, source[0][0][0]) and torch.equal(pooled, source[0][1]["pooled_output"][0])
    ((rows, _),) = prompts(against, [against], 4, 2)
    assert all(torch.equal(row, negative[0][0][0]) for row in rows)
    part = both | {"samples": both["samples"][3:4], "batch_index": both["batch_index"][3:4]}
    assert before(part) == 0, "one picture taken out of a batch is a scene"
    own = [[torch.cat([text(i)[0][0] for i in (5, 6)]), {}]]
    ((rows, _),) = prompts(own, [[[text(1)[0][0], {}]]], 2)
    assert torch.equal(rows[1:], own[0][0]), "scenes with prompts of their own"
    for act, words in (
        (lambda: prompts(scene, [text(3)], 4, 2), "need one row or 4, as the latent has pictures, and one of them has 1"),
        (lambda: prompts(positive, [text(3)], 2), "need one row or 2"),
        (lambda: prompts(positive, [text(1)] * 15, 4, 2), "17 portraits were given and 16 fit"),
    ):
        with pytest.raises(LoomError, match=words):
            act()


@pytest.mark.host
def test_the_node_finds_the_subjects_words(host):
    from types import SimpleNamespace

    from attention_loom.nodes.ir_diffusion import configure
    from comfy.sd1_clip import SD1Tokenizer

    own = SD1Tokenizer()
    clip = SimpleNamespace(tokenizer=own, cond_stage_model=object(), tokenize=lambda text, return_word_ids=False, **kw: own.tokenize_with_weights(text, return_word_ids, **kw))
    masks = dict(scene_masks=SCENE[0], reference_masks=REFERENCES, scene_prompt="a red fox and a snowy owl")
    words = configure(**masks, clip=clip, subject_words=" red fox \n\nsnowy owl\n").words
    assert [c.tokens for c in words.concepts] == [(2, 3), (6, 7)] and words.length == 77
    assert configure(**masks, clip=clip).words is None
    for more, sentence in (
        (dict(clip=None, subject_words="red fox\nsnowy owl"), "connect it to clip"),
        (dict(clip=clip, subject_words="red fox\nwolf"), "'wolf' does not stand in the prompt"),
        (dict(clip=clip, subject_words="red fox"), "2 subjects have masks and subject_words names 1"),
    ):
        with pytest.raises(LoomError, match=sentence):
            configure(**masks, **more)


@pytest.mark.host
def test_sdxl_from_prompts_to_pictures_in_both_ways(host):
    """What the SDXL workflows do behind their loaders: pooled vectors by row, grids of several sizes, pictures of one's own."""
    from attention_loom.nodes.ir_diffusion import LoomIRDiffusion, LoomPlaceMasks, LoomReferencePictures, LoomSubjectBatch

    model = tiny_models.tiny("sdxl", latent=(1, *LATENT["sdxl"][1:]))
    g = torch.Generator().manual_seed(8)
    facts = model.positive[0][1]
    texts = [[[torch.randn(1, 5, 2048, generator=g), facts | {"pooled_output": torch.randn(1, 1280, generator=g)}]] for _ in range(4)]
    positive, negative, made, count = LoomSubjectBatch.execute(texts[0], texts[1], {"samples": model.latent}, portrait_1=texts[2], portrait_2=texts[3]).result
    assert positive[0][1]["pooled_output"].shape == (3, 1280) and count == 2
    (scene,) = LoomPlaceMasks.execute("a @ 0, 0, 0.5, 1\nb @ 0.5, 0, 1, 1", 192, 128).result
    (own,) = LoomPlaceMasks.execute("a @ 0.15, 0.1, 0.85, 0.9\nb @ 0.15, 0.1, 0.85, 0.9", 192, 128).result
    (patched,) = LoomIRDiffusion.execute(model.patcher, scene, own).result
    whole = model._replace(positive=positive, negative=negative, latent=made["samples"])
    stock, ours = (tiny_models.sample(p, whole, steps=1, cfg=1.0) for p in (model.patcher, patched))
    assert torch.equal(ours[:2], stock[:2]) and torch.isfinite(ours).all() and not torch.equal(ours[2], stock[2])
    parts = {e.parts for e in record_of(patched).last.entries if e.planned}
    assert {("asides",), ("extra_kv", "labels"), ("labels",)} <= parts, "isolation in all layers, references in the later ones"
    pictures = {"samples": torch.randn(2, *model.latent.shape[1:], generator=g)}
    (references,) = LoomReferencePictures.execute(pictures, texts[1], portrait_1=texts[2], portrait_2=texts[3]).result
    (beside,) = LoomIRDiffusion.execute(model.patcher, scene, own, subjects=references, reposition_level="latent").result
    alone = model._replace(positive=texts[0], negative=texts[1])
    drawn, plain = (tiny_models.sample(p, alone, steps=1, cfg=1.0) for p in (beside, model.patcher))
    assert torch.isfinite(drawn).all() and not torch.equal(drawn, plain)
