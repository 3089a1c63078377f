"""The Inspector on the host's real model classes: it changes nothing, reads the right calls, and reads them rightly."""

import json

import host_inprocess
import pytest
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.concepts import Concept, Located
from attention_loom.core.errors import LoomError
from attention_loom.core.heads import HeadSet
from attention_loom.core.inspect.study import Collection, Place, Setting, Study
from attention_loom.core.inspect.summary import as_json, check, heads_text, text, top_heads
from attention_loom.core.methods.inspector import Inspector
from attention_loom.core.methods.softpag import SoftPAG
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.core.schedule import BlockSelection
from tiny_models import here

pytestmark = pytest.mark.host
WORDS = Located((Concept("red", (1,), ("red",)), Concept("blue ball", (2, 3), ("blue", "ball"))), (1, 2, 3), 5)
ALL_STEPS = tuple(i / 4 for i in range(4))


@pytest.fixture(scope="module", autouse=True)
def host():
    host_inprocess.import_host()


def inspect(name="sd15", steps=2, prompts=None, latent=None, cfg=3.0, sampler="euler", before=lambda m: m, after=lambda m: m, **how):
    """(study, sampled latent, the tiny model)"""
    from tiny_models import sample, tiny

    with torch.inference_mode():
        model = tiny(name, prompts=prompts, latent=latent)
        method = Inspector(**{"percents": (0.0, 0.5), "into": Collection()} | how)
        out = sample(after(attach(before(model.patcher), method)), model, steps=steps, cfg=cfg, sampler=sampler)
    return method.into.last, out, model


def written(layout):
    return " ".join(f"{s.kind}{'x'.join(map(str, s.grid)) if s.grid else s.length}" for s in layout.spans)


# --- the image stays what it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "latent", "prompts"),
    [("sd15", (2, 4, 4, 6), None), ("sd15", None, (5, 3)), ("sd3", (2, 16, 4, 6), None), ("flux", (2, 16, 4, 6), (5, 3)), ("wan", (2, 16, 3, 4, 6), None)],
    ids=["sd15-batch2", "sd15-unequal", "sd3-batch2", "flux-batch2-split", "wan-batch2"],
)
def test_image_is_bit_identical(name, latent, prompts):
    from tiny_models import sample, tiny

    study, out, _ = inspect(name, latent=latent, prompts=prompts, points=((0.5, 0.5),), words=WORDS)
    with torch.inference_mode():
        model = tiny(name, prompts=prompts, latent=latent)
        assert torch.equal(out, sample(model.patcher, model))
    assert study.stats
    assert study.word_maps
    assert study.point_maps
    assert not study.notes


def test_it_is_no_method_that_changed_nothing():
    _, _, model = inspect("sd15")
    patched = attach(model.patcher, Inspector())
    with torch.inference_mode():
        from tiny_models import sample

        sample(patched, model)
    run = record_of(patched).last
    assert run.touched == {}
    assert run.looked[Inspector.owner] > 0
    assert "changed none" in run.text()


# --- which calls are read ------------------------------------------------------------------------------------------------


READ = ["sd15", "svd", "sd3", "flux", "qwen_image", "z_image", "wan", "hunyuan_video", "hidream", "omnigen2_references", "aura_flow"]
READ += here("cogvideo", "kandinsky5", "minimax_h3_keyframes")


@pytest.mark.parametrize("name", READ)
def test_every_call_of_the_main_blocks_is_read_once_per_step(name):
    study, _, model = inspect(name)
    expected = {}
    for call in model.facts.calls(5):
        where, layout = call.split(": ")
        if "other" not in where.split() and "refiner" not in where:
            expected[where] = layout
    assert {f"{p.block} {p.kind}" for p in study.stats} == set(expected)
    for place, steps in study.stats.items():
        assert sorted(steps) == [0, 1], place
        assert [len(calls) for calls in steps.values()] == [1, 1]
        (calls, _) = steps.values()
        assert len(calls[0].scalars["entropy"]) == model.facts.heads
        if place.kind != "cross":
            assert calls[0].grid is not None
    assert len({p.layer for p in study.stats}) == study.layers or name == "svd"


def spied(seen):
    """Another pack's override that keeps q and k of every call."""

    def put(model):
        clone = model.clone()

        def override(func, q, k, v, heads, *args, **kwargs):
            seen.append((q.clone(), k.clone(), heads, kwargs["transformer_options"]["cond_or_uncond"], float(kwargs["transformer_options"]["sigmas"][0])))
            return func(q, k, v, heads, *args, **kwargs)

        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return clone

    return put


@pytest.mark.parametrize("branch", ["positive", "negative", "both"])
def test_numbers_are_those_of_the_chosen_branch(branch):
    """Entropy and text mass of FLUX's first block, from what another override saw."""
    seen = []
    study, _, _ = inspect("flux", before=spied(seen), branch=branch, percents=(0.5,), latent=(2, 16, 4, 6))
    (step,) = study.sigmas
    q, k, _, rows, _ = next(s for s in seen if s[4] == study.sigmas[step] and s[0].shape[2] == 11)
    assert rows == [1, 0]
    keep = {"positive": slice(2, 4), "negative": slice(0, 2), "both": slice(0, 4)}[branch]
    a = (q[keep].double() @ k[keep].double().transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 5:]
    found = study.mean(study.places()[0]).scalars
    assert torch.allclose(found["entropy"].double(), torch.special.entr(a).sum(-1).mean((0, 2)) / torch.tensor(11.0).log(), atol=1e-5)
    assert torch.allclose(found["text mass"].double(), a[..., :5].sum(-1).mean((0, 2)), atol=1e-5)


def test_word_maps_are_columns_of_the_attention():
    """SD 1.5 with prompts of unequal length: the host repeats the shorter one to 10 tokens, and every repeat counts."""
    seen = []
    study, _, _ = inspect("sd15", before=spied(seen), prompts=(5, 10), percents=(0.0,), words=WORDS)
    q, k, heads, rows, _ = next(s for s in seen if s[1].shape[1] == 10)
    place = study.places(cross=True)[0]
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2)[rows.index(0)].double() for x in (q, k))
    a = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    truth = torch.stack([a[..., 1::5].sum(-1), a[..., 2::5].sum(-1) + a[..., 3::5].sum(-1)], -1)
    total, n = study.word_maps[place]
    assert n == 1
    assert total.shape == (2, 1, 4, 6)
    assert torch.allclose(total.flatten(1).double(), truth.mean(0).T, atol=1e-5)
    assert torch.allclose(study.mean(place).words.double(), truth.mean(1), atol=1e-5)


def test_words_of_another_prompt_are_not_read():
    assert WORDS.columns((0, 7), 7) is None
    study, _, _ = inspect("flux", prompts=(7, 7), words=WORDS)
    assert not study.word_maps
    assert "7 text tokens, the prompt makes 5" in study.notes[0]


# --- which steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2s_ancestral", "dpm_adaptive"])
def test_chosen_steps_with_samplers_of_every_habit(sampler):
    study, _, _ = inspect("flux", steps=4, sampler=sampler, percents=(0.0, 0.5, 0.75), blocks=BlockSelection.parse("0"))
    (place,) = study.stats
    assert sorted(study.stats[place]) == sorted(study.sigmas)
    assert set(study.sigmas) <= {0, 2, 3}
    if sampler != "dpm_adaptive":  # it chooses its own levels
        assert set(study.sigmas) == {0, 2, 3}
    assert all(len(calls) == 1 for calls in study.stats[place].values()), "an evaluation twice at one level is read once"


def test_two_points_in_one_step_are_read_once():
    study, _, _ = inspect("flux", percents=(0.1, 0.2, 1.0), steps=2)
    assert sorted(study.sigmas) == [0, 1]


# --- beside other methods -------------------------------------------------------------------------------------------------


def test_only_the_main_pass_is_read():
    """SoftPAG's extra pass runs the same blocks again; up to its first effect the numbers are those without it."""
    alone, _, _ = inspect("flux", percents=(0.0,))
    guided, _, _ = inspect("flux", percents=(0.0,), after=lambda m: attach(m, SoftPAG(heads=HeadSet.parse("all"))))
    for place in alone.stats:
        assert len(guided.stats[place][0]) == 1
        assert all(torch.equal(v, guided.mean(place).scalars[n]) for n, v in alone.mean(place).scalars.items())


def test_a_foreign_extra_pass_is_not_read():
    """A post-CFG function that evaluates the prompt again, unmarked, as other packs' guidance does."""
    import comfy.samplers

    def again(args):
        comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"] + 1.0, args["sigma"], args["model_options"])
        return args["denoised"]

    def put(model):
        model.set_model_sampler_post_cfg_function(again)
        return model

    alone, _, _ = inspect("flux")
    beside, _, _ = inspect("flux", after=put)
    for place in alone.stats:
        assert all(torch.equal(v, beside.mean(place).scalars[n]) for n, v in alone.mean(place).scalars.items())


def test_another_method_keeps_its_result():
    from tiny_models import sample, tiny

    method = UltraViCo(train_frames=2, alpha=0.5)
    _, both, model = inspect("wan", after=lambda m: attach(m, method))
    with torch.inference_mode():
        assert torch.equal(both, sample(attach(model.patcher, method), tiny("wan")))


# --- what the user reads --------------------------------------------------------------------------------------------------


def test_list_of_heads_and_json():
    study, _, model = inspect("flux")
    heads = top_heads(study, "entropy", 3, "highest")
    values = {(p.layer, h): float(study.mean(p).scalars["entropy"][h]) for p in study.places() for h in range(2)}
    assert [(p.layer, h) for p, h in heads] == sorted(values, key=values.get, reverse=True)[:3]
    listed = HeadSet.parse(heads_text(heads))
    for place in study.places():
        assert [bool(a) for a in listed.amounts(place.block, 2, 1.0)] == [(place, h) in heads for h in range(2)]
    data = json.loads(as_json(study, "entropy", "highest", heads))
    assert data["n_layers"] == 3
    assert data["n_heads"] == {"L0": 2, "L1": 2, "L2": 2}
    assert data["chosen"]["heads"] == heads_text(heads)
    assert data["places"][0]["mean"]["entropy"][0] == pytest.approx(values[0, 0], rel=1e-4)
    assert sorted(data["places"][0]["steps"]) == ["0", "1"]
    assert "kinds of head" in text(study, "entropy", heads)
    with pytest.raises(LoomError, match=r"measure 'same frame' does not exist for this model; choose one of distance, "):
        top_heads(study, "same frame", 3)


def test_nan_is_reported_with_its_place():
    study = Study("FLUX", 1, 4, Setting((0.5,), "positive", 16))
    real, _, _ = inspect("flux", percents=(0.0,), blocks=BlockSelection.parse("0"))
    (place,) = real.stats
    stats = real.mean(place)
    stats.scalars["entropy"][1] = float("nan")
    study.add(place, 2, 0.5, stats)
    assert study.notes == ["NaN in the attention at step 2, L0 (double 0) joint, head 1"]
    assert json.loads(as_json(study, "entropy", "highest", []))["places"][0]["mean"]["entropy"][1] is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"percents": ()}, "0 steps were given; choose 1 to 10"),
        ({"percents": (0.5, 1.5)}, "step 1.5 was given"),
        ({"branch": "all"}, "branch 'all' was given; choose one of positive, negative, both"),
        ({"rows": 4}, "rows 4 was given; sample 16 to 1024"),
        ({"points": ((0.5, 1.2),)}, "the point 0.5,1.2 lies outside the picture"),
        ({"blocks": BlockSelection.parse("0-1, 9")}, r"blocks '9' selects nothing; this FLUX model has layers 0 to 2 \(double 0 to 0, single 0 to 1\)"),
    ],
)
def test_bad_settings_are_named(how, message):
    with pytest.raises(LoomError, match=message):
        inspect("flux", **how)


def test_nothing_read_is_said():
    with pytest.raises(LoomError, match="nothing was sampled"):
        check(Collection().last)
    study, _, _ = inspect("flux", branch="negative", cfg=1.0)
    with pytest.raises(LoomError, match=r"no attention of FLUX was read in the last run \(branch negative"):
        check(study)


def test_copies_of_the_model_share_one_collection():
    import copy

    method = Inspector()
    assert copy.deepcopy(method).into is method.into
    assert copy.deepcopy({"c": method.into})["c"] is method.into
    assert Place.__dataclass_params__.frozen
