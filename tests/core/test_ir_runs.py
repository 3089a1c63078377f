"""IR-Diffusion in whole runs: references are stock, off is off, beside other nodes, and every sentence about what does not fit."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.methods.entropy_scale import EntropyScale
from attention_loom.core.places import stack
from ir_scene import OWNER, REFERENCES, SCENE, WORDS, X, Y, batch, box, call_of, method, tensors


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "qwen_image"])
def test_references_come_out_as_without_the_node(host, name):
    model = batch(name)
    stock = tiny_models.sample(model.patcher, model)
    patched = attach(model.patcher, method(start_layer=0, dropout=0.5))
    ours = tiny_models.sample(patched, model)
    run_ = record_of(patched).last
    assert torch.isfinite(ours).all() and torch.equal(ours[:2], stock[:2])
    assert (ours[2] - stock[2]).abs().max() > 1e-3 * stock.abs().max()
    parts = {(e.kind, e.parts) for e in run_.entries if e.planned}
    want = {("self", ("extra_kv", "labels")), ("cross", ("asides",))} if name == "sd15" else {("joint", ("extra_kv", "labels"))}
    assert want <= parts and run_.touched[OWNER] > 0
    assert torch.equal(ours, tiny_models.sample(patched, model)), "a second run is the same, dropout included"
    assert torch.equal(stock, tiny_models.sample(model.patcher, model)), "the model itself is as before"


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_off_and_one_subject_alone_are_bit_identical(host, name):
    model = batch(name)
    stock = tiny_models.sample(model.patcher, model)
    nothing = dict(isolation=False, reading="off", cross=0.0)
    empty = dict(scene=torch.zeros_like(SCENE), allow_missing=True)
    single = dict(scene=SCENE[:, :1], references=REFERENCES[:1])
    for settings in (nothing, dict(strength=0.0), empty, single | dict(reading="off", cross=0.0)):
        assert methods_of(attach(model.patcher, method(**settings))) == ()
    rests = attach(model.patcher, method(**single, reading="reposition", read_to=0.0, cross=0.0))
    assert torch.equal(stock, tiny_models.sample(rests, model)), "one subject is isolated from nobody: stock code"
    assert record_of(rests).last.touched == {OWNER: 0}


@pytest.mark.host
def test_guidance_off_or_in_calls_of_its_own(host, monkeypatch):
    model = batch("sd15")
    patched = attach(model.patcher, method(start_layer=0))
    together = tiny_models.sample(patched, model)
    alone = tiny_models.sample(patched, model, cfg=1.0)
    assert torch.isfinite(alone).all() and torch.equal(alone[:2], tiny_models.sample(model.patcher, model, cfg=1.0)[:2])
    monkeypatch.setattr(type(model.patcher.model), "memory_required", lambda *a, **k: 1e30)
    assert (together - tiny_models.sample(patched, model)).abs().max() < 1e-4 * together.abs().max()


@pytest.mark.host
def test_other_nodes_in_any_order(host):
    model = batch("sd15")
    mine, other = method(start_layer=0), EntropyScale(trained=((1, 16, 16),))
    one, two = attach(attach(model.patcher, mine), other), attach(attach(model.patcher, other), mine)
    ours = tiny_models.sample(one, model)
    assert torch.equal(ours, tiny_models.sample(two, model))
    assert torch.equal(ours[:2], tiny_models.sample(attach(model.patcher, other), model)[:2]), "references take what the other node asks, and nothing else"
    assert any({"labels", "modulation"} <= set(e.parts) for e in record_of(one).last.entries if e.planned)


@pytest.mark.host
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: method(references=REFERENCES[:1]), "2 scene masks and 1 reference masks were given"),
        (lambda: method(scene=SCENE * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)), "subject 2 has an empty scene mask"),
        (lambda: method(references=REFERENCES * 0), "subject 1 has an empty reference mask"),
        (lambda: method(scene=SCENE[:, :1].repeat(1, 17, 1, 1), references=REFERENCES[:1].repeat(17, 1, 1)), "17 subjects were given and 16 fit"),
        (lambda: method(cross=1.5), "cross_lambda 1.5 was given"),
        (lambda: method(dropout=0.99), "query_dropout 0.99 was given"),
        (lambda: stack(SCENE[0] * 2, "scene_masks"), "scene_masks has values from 0 to 2"),
        (lambda: attach(tiny_models.tiny("wan").patcher, method()), "works on pictures and was given Wan"),
        (lambda: attach(tiny_models.tiny("svd").patcher, method()), "works on pictures"),
        (lambda: attach(tiny_models.tiny("flux2").patcher, method()), "cannot read the rotary positions of this FLUX model"),
        (lambda: attach(tiny_models.tiny("sd15").patcher, method(start_layer=10)), "start_layer 10 was given and the model has 10 layers"),
        (lambda: sampled("sd3", batch("sd3")._replace(latent=torch.zeros(2, 16, 8, 12))), "the latent has 2 pictures, and the masks are for 2 references and 1 scenes"),
        (lambda: sampled("sd3", batch("sd3", 1), scene=torch.cat([SCENE, SCENE])), "the latent has 3 pictures, and the masks are for 2 references and 2 scenes"),
        (lambda: sampled("sd3", batch("sd3"), scene=SCENE[:, :, :16]), "the scene masks are 48 x 16 and the picture has 6 x 4 tokens"),
        (lambda: sampled("sd3", batch("sd3"), references=torch.stack([box(0, 1, 0, 0.17), REFERENCES[1]])), "the reference mask of subject 1 is 1 x 4 tokens"),
        (lambda: sampled("sd15", batch("sd15"), replaced="attn1"), "another node replaces its attention"),
        (lambda: sampled("sd15", batch("sd15"), replaced="attn2"), "Take that node out, or set cross_lambda to 0"),
        (lambda: sampled("sd3", one_row(batch("sd3"))), "the positive prompt has 1 rows and the latent 3 pictures"),
        (lambda: sampled("sd3", batch("sd3")._replace(negative=batch("sd3", 2).negative)), "the negative prompt has 4 rows and the latent 3 pictures"),
        (lambda: sampled("sd3", combined(batch("sd3"))), "the positive prompt consists of 2 conditionings"),
        (lambda: in_windows(method(), (0, 1)), "cannot work with context windows"),
        (lambda: method(words=replace(WORDS, concepts=WORDS.concepts[:1])), "2 subjects have masks and subject_words names 1"),
        (lambda: method(strength=1.5), "strength 1.5 was given"),
        (lambda: method(threshold=0.96), "mask_threshold 0.96 was given"),
        (lambda: method(reading="x"), "references 'x' was given"),
    ],
)
def test_what_does_not_fit_is_said(host, make, words):
    with pytest.raises(LoomError, match=words):
        make()


def one_row(model):
    return model._replace(positive=[[model.positive[0][0][:1], model.positive[0][1]]])


def combined(model):
    return model._replace(positive=[*model.positive, *model.positive])


def in_windows(m, frames):
    m.contribute(replace(call_of("self", tensors(3, Y * X)), frames=frames), None)


@pytest.mark.host
def test_a_negative_prompt_of_one_row_is_that_of_all_pictures(host):
    model = batch("sd3")
    negative = model.negative[0][0][:1]
    pooled = model.negative[0][1]["pooled_output"][:1]
    repeated = model._replace(negative=[[negative.expand(3, -1, -1), model.negative[0][1] | {"pooled_output": pooled.expand(3, -1)}]])
    single = model._replace(negative=[[negative, model.negative[0][1] | {"pooled_output": pooled}]])
    patched = attach(model.patcher, method(start_layer=0))
    assert torch.equal(tiny_models.sample(patched, repeated), tiny_models.sample(patched, single))


@pytest.mark.host
def test_texts_replaced_elsewhere_leave_the_rest(host):
    model = batch("sd15")
    patcher = model.patcher.clone()
    patcher.set_model_attn2_replace(lambda q, k, v, extra: torch.zeros_like(q), "middle", 0)
    stock, ours = (tiny_models.sample(p, model, cfg=1.0) for p in (patcher, attach(patcher, method(start_layer=0, cross=0.0))))
    assert torch.equal(ours[:2], stock[:2]) and not torch.equal(ours[2], stock[2])


def sampled(name, model, replaced="", **settings):
    patcher = model.patcher.clone()
    if replaced == "attn2":
        patcher.set_model_attn2_replace(lambda q, k, v, extra: v, "middle", 0)
    elif replaced:
        patcher.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    return tiny_models.sample(attach(patcher, method(start_layer=0, **settings)), model)
