"""IR-Diffusion with references sampled aside: the same as in one batch where both see the same references, and what it refuses."""

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.beside import Beside
from attention_loom.core.errors import LoomError
from attention_loom.core.methods.ir_diffusion import IRDiffusion
from ir_scene import OWNER, REFERENCES, SCENE

pytestmark = pytest.mark.host
SIZE = {"sd15": (4, 8, 12), "sd3": (16, 8, 12), "flux": (16, 8, 12)}
SEED = 4


def prompt(like, seed, tokens=None):
    """Another prompt in the form of a conditioning."""
    g = torch.Generator().manual_seed(seed)
    text, facts = like[0]
    pooled = {key: torch.randn(x.shape, generator=g) for key, x in facts.items() if key == "pooled_output"}
    return [[torch.randn(1, tokens or text.shape[1], text.shape[2], generator=g), facts | pooled]]


def rows(*prompts):
    """Several conditionings as rows of one."""
    facts = prompts[0][0][1]
    pooled = {key: torch.cat([p[0][1][key] for p in prompts]) for key in facts if key == "pooled_output"}
    return [[torch.cat([p[0][0] for p in prompts]), facts | pooled]]


def beside(name, model, tokens=None, count=2, **more):
    latents = torch.randn(count, *SIZE[name], generator=torch.Generator().manual_seed(9))
    return Beside(latents, tuple(prompt(model.positive, 20 + i, tokens) for i in range(count)), model.negative, SEED, **more)


def method(given, **settings):
    return IRDiffusion(**dict(scene=SCENE, references=REFERENCES, start_layer=0, beside=given) | settings)


def run(patcher, model, noise, latent, steps=2, cfg=3.0, **more):
    import comfy.sample

    return comfy.sample.sample(patcher, noise, steps, cfg, "euler", "simple", model.positive, model.negative, latent, disable_pbar=True, seed=1, **more)


@pytest.mark.parametrize("name", list(SIZE))
def test_one_step_is_the_same_aside_and_in_the_batch(host, name):
    """In the batch the references have moved on after the first step; until then both modes see the same."""
    model = tiny_models.tiny(name, latent=(1, *SIZE[name]))
    given = beside(name, model)
    noise = torch.randn(1, *SIZE[name], generator=torch.Generator().manual_seed(2))
    shared = torch.randn(1, *SIZE[name], generator=torch.Generator().manual_seed(SEED))
    own = torch.randn(1, *SIZE[name], generator=torch.Generator().manual_seed(3))  # the host treats latents of zeros in another way
    # one step that is not the schedule's first: there U-Nets scale pure noise differently
    part = dict(steps=2, start_step=1, force_full_denoise=True)
    patched = attach(model.patcher, method(given))
    aside = run(patched, model, noise, own, **part)
    whole = model._replace(positive=rows(*given.prompts, model.positive), negative=rows(*[model.negative] * 3))
    together = run(
        attach(model.patcher, method(None)), whole, torch.cat([shared, shared, noise]), torch.cat([given.latents, own]), **part
    )  # fmt: skip
    stock = run(model.patcher, model, noise, own, **part)
    change = (together[2:] - stock).abs().max()
    assert change > 1e-3 * stock.abs().max() and (aside - together[2:]).abs().max() < 1e-3 * change + 1e-5 * stock.abs().max()
    last = record_of(patched).last
    assert last.passes[OWNER] == 4, "two references, each with its prompt and the negative one"
    assert not last.state, "nothing is kept behind the run"


def test_prompts_of_other_lengths_several_scenes_and_a_second_run(host):
    model = tiny_models.tiny("flux", latent=(2, *SIZE["flux"]), prompts=(5, 3))
    given = beside("flux", model, tokens=7)
    patched = attach(model.patcher, method(given))
    ours = tiny_models.sample(patched, model)
    assert torch.isfinite(ours).all() and not torch.equal(ours, tiny_models.sample(model.patcher, model))
    assert torch.equal(ours, tiny_models.sample(patched, model))
    each = tiny_models.sample(attach(model.patcher, method(given, scene=torch.cat([SCENE, SCENE.flip(-1)]), dropout=0.0)), model)
    same = tiny_models.sample(attach(model.patcher, method(given, dropout=0.0)), model)
    assert (each[0] - same[0]).abs().max() < 1e-4 * same.abs().max() and (each[1] - same[1]).abs().max() > 1e-2 * same.abs().max(), "a scene's own masks"
    alone = attach(model.patcher, method(given))
    assert torch.isfinite(tiny_models.sample(alone, model, cfg=1.0)).all() and record_of(alone).last.passes[OWNER] == 4, "two steps, without the negative prompt"


def test_portraits_with_more_tokens_than_the_negative_prompt(host):
    """In one batch the scene's prompts read portraits of one length and a negative prompt of another: as each by itself."""
    model = tiny_models.tiny("sd15", latent=(1, *SIZE["sd15"]))
    patched = attach(model.patcher, method(beside("sd15", model, tokens=2 * model.positive[0][0].shape[1])))
    together = tiny_models.sample(patched, model, steps=1)
    assert not torch.equal(together, tiny_models.sample(model.patcher, model, steps=1))
    apart = tiny_models.tiny("sd15", latent=(1, *SIZE["sd15"]), prompts=None)
    g = torch.Generator().manual_seed(3)
    other = [[torch.randn(1, 77 + apart.positive[0][0].shape[1], apart.positive[0][0].shape[2], generator=g), apart.negative[0][1]]]
    assert torch.isfinite(tiny_models.sample(patched, apart._replace(negative=other), steps=1)).all()


@pytest.mark.parametrize(("steps", "start"), [(10, 0.2), (10, 0.1), (20, 0.45), (25, 0.44)])
def test_a_share_that_falls_on_a_step_includes_it(steps, start):
    from attention_loom.core.attach import _progress

    sigmas = torch.linspace(1, 0, steps + 1)
    places = [_progress({"sample_sigmas": sigmas}, float(sigma)) for sigma in sigmas[:-1]]
    assert sum(place >= start for place in places) == steps - round(start * steps)


def test_references_run_only_where_they_are_read(host):
    model = tiny_models.tiny("sd3", latent=(1, *SIZE["sd3"]))
    patched = attach(model.patcher, method(beside("sd3", model), read_to=0.5, cross=0.0))
    tiny_models.sample(patched, model, steps=4)
    assert record_of(patched).last.passes[OWNER] == 8, "two of four steps"
    only = attach(model.patcher, method(beside("sd3", model), reading="off", cross=0.0))
    tiny_models.sample(only, model)
    assert record_of(only).last.passes[OWNER] == 0 and record_of(only).last.touched[OWNER] > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: method(beside("sd3", m, count=3)), "2 subjects have masks and 3 references were given"),
        (lambda m: Beside(torch.zeros(2, 16, 8, 12), (m.positive,), m.negative), "2 reference latents and 1 prompts"),
        (lambda m: sampled(m, Beside(torch.zeros(2, 16, 8, 8), (m.positive, m.positive), m.negative)), r"are \(16, 8, 8\) and the scene's \(16, 8, 12\)"),
        (lambda m: sampled(m, beside("sd3", m), scene=torch.cat([SCENE, SCENE, SCENE])), "the latent has 1 pictures, and masks of 3 scenes were given"),
    ],
)
def test_what_does_not_fit_is_said(host, make, words):
    with pytest.raises(LoomError, match=words):
        make(tiny_models.tiny("sd3", latent=(1, *SIZE["sd3"])))


def sampled(model, given, **settings):
    return tiny_models.sample(attach(model.patcher, method(given, **settings)), model)


def test_the_nodes_take_pictures(host):
    from attention_loom.nodes.ir_diffusion import LoomIRDiffusion, LoomReferencePictures

    model = tiny_models.tiny("sd3", latent=(1, *SIZE["sd3"]))
    given = beside("sd3", model)
    (references,) = LoomReferencePictures.execute({"samples": given.latents}, model.negative, SEED, portrait_1=given.prompts[0], portrait_2=given.prompts[1]).result
    settings = dict(min_mask=0.0, start_layer=0, subjects=references)
    (patched,) = LoomIRDiffusion.execute(model.patcher, SCENE[0], REFERENCES, **settings).result
    assert torch.equal(tiny_models.sample(patched, model), tiny_models.sample(attach(model.patcher, method(given)), model))
    with pytest.raises(LoomError, match="2 reference latents and 1 prompts"):
        LoomReferencePictures.execute({"samples": given.latents}, model.negative, portrait_1=given.prompts[0])


def test_a_moved_picture_stands_where_its_subject_goes(host):
    from attention_loom.core.attach import methods_of
    from attention_loom.core.reposition import pasted
    from attention_loom.nodes.ir_diffusion import LoomIRDiffusion, configure

    model = tiny_models.tiny("sd15", latent=(1, *SIZE["sd15"]))
    given = beside("sd15", model)
    settings = dict(min_mask=0.0, start_layer=0, subjects=given, query_dropout=0.0)
    (patched,) = LoomIRDiffusion.execute(model.patcher, SCENE[0], REFERENCES, reposition_level="latent", **settings).result
    (m,) = methods_of(patched)
    assert torch.equal(m.references > 0.5, torch.stack([mask[::4, ::4] for mask in SCENE[0]]) > 0.5), "boxes: each fills its place"
    want, _ = pasted(given.latents[0], REFERENCES[0][::4, ::4] > 0.5, SCENE[0, 0][::4, ::4] > 0.5)
    assert torch.equal(m.beside.latents[0], want) and m.beside.prompts == given.prompts
    ours = tiny_models.sample(patched, model)
    (tokens,) = LoomIRDiffusion.execute(model.patcher, SCENE[0], REFERENCES, **settings).result
    assert torch.isfinite(ours).all() and not torch.allclose(ours, tiny_models.sample(tokens, model), atol=1e-4)
    for more, words in (
        (dict(subjects=None), "needs Reference Pictures at subjects"),
        (dict(references="in place"), "needs Reference Pictures at subjects"),
        (dict(reposition_level="x"), "reposition_level 'x' was given"),
        (dict(subjects=beside("sd15", model, count=3)), "2 subjects have masks and 3 references"),
    ):
        with pytest.raises(LoomError, match=words):
            configure(SCENE[0], REFERENCES, **(dict(reposition_level="latent") | settings | more))
    with pytest.raises(LoomError, match="masks of 2 scenes were given"):
        configure(torch.cat([SCENE[0], SCENE[0]]), REFERENCES, reposition_level="latent", **settings)


def test_references_run_without_the_scenes_controlnet(host):
    from attention_loom.core.side_call import _prepared

    model = tiny_models.tiny("sd15", latent=(1, *SIZE["sd15"]))
    held = [[model.negative[0][0], model.negative[0][1] | {"control": object(), "control_apply_to_uncond": False}]]
    given = beside("sd15", model)
    given = Beside(given.latents, tuple(held for _ in given.prompts), held, SEED)
    ready = _prepared(OWNER, given, model.patcher.model, torch.zeros(1, *SIZE["sd15"]))
    assert not any("control" in entry for role in ready.conds for entries in role for entry in entries)


def test_more_pictures_in_a_chain(host):
    from attention_loom.nodes.ir_diffusion import LoomReferencePictures

    model = tiny_models.tiny("sd3", latent=(1, *SIZE["sd3"]))
    given = beside("sd3", model)
    parts = [{"samples": given.latents[i : i + 1]} for i in range(2)]
    (first,) = LoomReferencePictures.execute(parts[0], model.negative, SEED, portrait_1=given.prompts[0]).result
    (both,) = LoomReferencePictures.execute(parts[1], model.negative, 99, before=first, portrait_1=given.prompts[1]).result
    assert torch.equal(both.latents, given.latents) and both.prompts == given.prompts and both.seed == SEED
    with pytest.raises(LoomError, match="make them of one size"):
        LoomReferencePictures.execute({"samples": torch.zeros(1, 16, 8, 8)}, model.negative, before=first, portrait_1=given.prompts[1])
    with pytest.raises(LoomError, match="portrait_1 is not connected and a later one is"):
        LoomReferencePictures.execute(parts[0], model.negative, portrait_2=given.prompts[0])


def test_what_is_kept_of_references_is_gone_after_each_evaluation(host):
    from attention_loom.core.attach import methods_of
    from attention_loom.core.beside import notes_key

    model = tiny_models.tiny("sd3", latent=(1, *SIZE["sd3"]))
    patched = attach(model.patcher, method(beside("sd3", model)))
    key, seen = notes_key(methods_of(patched)[0]), []
    tiny_models.sample(patched, model, callback=lambda *_: seen.append(key in record_of(patched).current.state))
    assert seen == [False, False]
