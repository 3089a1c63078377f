"""SoftPAG in company: other guidances and methods, batches, areas, ControlNets and windows; and what is refused."""

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.guidance import EXTRA
from attention_loom.core.methods.softpag import head_mix
from attention_loom.core.methods.ultravico import UltraViCo
from softpag_runs import by_hand, counted, explicit, softpag, watched

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


@pytest.fixture
def planned(monkeypatch):
    """Every call our backend executed: (q, k, v, plan, stock result, our result)."""
    return watched(monkeypatch)


def one_step(model, *methods):
    """The denoised latent of the first step: Euler's only step ends on it."""
    patcher = model.patcher
    for method in methods:
        patcher = attach(patcher, method)
    return tiny_models.sample(patcher, model, steps=1)


def test_two_guidances_add_up_in_any_order():
    model = tiny_models.tiny("sd3")
    a, b = softpag("0", scale=2.0, u=0.4), softpag("1:1", scale=1.5, u=1.0, target="uniform")
    stock, only_a, only_b, both, turned, twice = (one_step(model, *m) for m in ((), (a,), (b,), (a, b), (b, a), (a, a)))
    assert torch.allclose(both, stock + (only_a - stock) + (only_b - stock), atol=1e-4)
    assert torch.allclose(both, turned, atol=1e-4)
    assert torch.allclose(twice, stock + 2 * (only_a - stock), atol=1e-4)
    assert (both - stock).abs().max() > 0.01


def test_it_adds_to_the_hosts_own_guidance_nodes():
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    model = tiny_models.tiny("sd15")
    ours = softpag("u0", u=1.0)
    stock, alone = one_step(model), one_step(model, ours)
    host = tiny_models.sample(PerturbedAttentionGuidance.execute(model.patcher, 2.0).result[0], model, steps=1)
    for both in (PerturbedAttentionGuidance.execute(attach(model.patcher, ours), 2.0).result[0], attach(PerturbedAttentionGuidance.execute(model.patcher, 2.0).result[0], ours)):
        assert torch.allclose(tiny_models.sample(both, model, steps=1), alone + host - stock, atol=1e-4 * float(host.abs().max()))


def test_other_methods_act_in_the_extra_pass_as_in_the_main_one(planned):
    model = tiny_models.tiny("wan")
    patched = attach(attach(model.patcher, UltraViCo(train_frames=2, alpha=0.3)), softpag("1"))
    tiny_models.sample(patched, model, steps=1, cfg=1.0)
    features = [sorted(p[3].features) for p in planned]
    assert features == [["modulation"], ["modulation"], ["modulation"], ["head_mix", "modulation"]]


@pytest.mark.parametrize("prompts", [(5, 3), (5, 5)], ids=["split", "batched"])
def test_split_and_batched_cfg(prompts):
    model = tiny_models.tiny("flux", prompts=prompts)
    truth = by_hand(model.patcher, 2.0, lambda q, k, v, text: explicit(q, k, v, text, "identity", "all", 0.6))
    patched, seen = counted(attach(model.patcher, softpag(scale=2.0, u=0.6)))
    want, got = (tiny_models.sample(m, model) for m in (truth, patched))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert seen[: len(seen) // 2] == ([((0,), False), ((1,), False), ((0,), True)] if prompts == (5, 3) else [((1, 0), False), ((0,), True)])


@pytest.mark.parametrize("name", ["flux", "sd15", "wan"])
def test_samples_of_a_batch_do_not_mix(name):
    model = tiny_models.tiny(name)
    two = model._replace(latent=torch.cat([model.latent, model.latent]))
    patched = attach(model.patcher, softpag(u=0.7, rescale=0.5))
    import comfy.sample

    noise = comfy.sample.prepare_noise(two.latent, 1)
    run = lambda n, latent: comfy.sample.sample(patched, n, 2, 3.0, "euler", "simple", model.positive, model.negative, latent, disable_pbar=True, seed=1)  # noqa: E731
    both = run(noise, two.latent)
    for i in range(2):
        alone = run(noise[i : i + 1], model.latent)
        assert (both[i : i + 1] - alone).abs().max() < 1e-4 * alone.abs().max()


def test_area_conditioning():
    """Two prompts, one of them for the left half only: the extra pass has the same areas."""
    model = tiny_models.tiny("sd3", latent=(1, 16, 4, 8))
    (context, more), (other, _) = model.positive[0], model.negative[0]
    areas = [[context, more], [other, more | {"area": (4, 4, 0, 0), "strength": 2.0}]]
    model = model._replace(positive=areas)
    truth = by_hand(model.patcher, 2.0, lambda q, k, v, text: explicit(q, k, v, 5, "identity", "all", 0.6))
    patched, seen = counted(attach(model.patcher, softpag(scale=2.0, u=0.6)))
    want, got = (tiny_models.sample(m, model, steps=1) for m in (truth, patched))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert sum(extra for _, extra in seen) == 2, "one model call per area"


def test_a_controlnet_comes_along():
    import comfy.controlnet

    asked = []

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x, t, cond, batched_number, transformer_options):
            asked.append(EXTRA in transformer_options)
            return {"input": [], "middle": [], "output": []}

        def get_models(self):
            return []

        def copy(self):
            return self

    model = tiny_models.tiny("sd15")
    (context, more), control = model.positive[0], Control()
    model = model._replace(positive=[[context, more | {"control": control}]])
    out = one_step(model, softpag("m0"))
    assert torch.isfinite(out).all()
    assert True in asked
    assert False in asked


def test_a_step_without_a_prompt_has_nothing_to_push():
    model = tiny_models.tiny("flux")
    (context, more) = model.positive[0]
    late = model._replace(positive=[[context, more | {"start_percent": 0.6, "end_percent": 1.0}]])
    patched, seen = counted(attach(model.patcher, softpag()))
    out = tiny_models.sample(patched, late, steps=8)
    assert torch.isfinite(out).all()
    prompted = sum(0 in rows for rows, extra in seen if not extra)
    assert 0 < prompted < 8
    assert sum(extra for _, extra in seen) == prompted


def test_context_windows():
    import comfy.context_windows as windows

    model = tiny_models.tiny("wan", latent=(1, 16, 5, 4, 6))
    patched, seen = counted(attach(model.patcher, softpag("1")))
    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=3,
        context_overlap=1,
        dim=2,
    )
    patched.model_options["context_handler"] = handler
    assert torch.isfinite(tiny_models.sample(patched, model, steps=1)).all()
    assert [extra for _, extra in seen] == [False] * 2 + [True] * 2


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("sd3", {"heads": "2"}, "'2' names no block of this model: SD3 has 2 blocks, 0 to 1 in order .double 0 to 1."),
        ("sd3", {"heads": "L1H2"}, "'L1H2' names head 2, and double 1 .block 1 in order. has heads 0 to 1"),
        ("sd15", {"heads": "u9"}, "'u9' names no block"),
        ("flux", {"heads": '{"family": "SD3", "blocks": 24, "heads_per_block": 24, "heads": ["L0H0"]}'}, "found on SD3 with 24 blocks of 24 heads"),
        ("wan", {"rows": "image_image"}, "rows image_image needs attention over text and picture together, and Wan reads its text apart"),
        ("sd15", {"rows": "image_image"}, "SD 1.5 / SDXL reads its text apart"),
        ("flux", {"u": 1.5}, "u 1.5 was given"),
        ("flux", {"u": float("nan")}, "u nan was given"),
        ("flux", {"target": "blur"}, "target 'blur' was given"),
        ("flux", {"rows": "text"}, "rows 'text' was given"),
        ("flux", {"rows": "image_image", "target": "max"}, "rows image_image is a form of the identity"),
    ],
)
def test_what_cannot_work_is_refused_when_the_node_runs(name, settings, words):
    with pytest.raises(LoomError, match=words):
        attach(tiny_models.tiny(name).patcher, softpag(**settings))


def test_an_extra_pass_that_reaches_nothing_is_an_error():
    model = tiny_models.tiny("sd15")
    patched = attach(model.patcher, softpag("m0"))
    patched.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    with pytest.raises(LoomError, match=r"could not change any attention in its extra pass \(middle 0.0\): another node replaces"):
        tiny_models.sample(patched, model)


def test_blocks_it_does_not_reach_are_reported():
    model = tiny_models.tiny("sd15")
    patched = attach(model.patcher, softpag("m0, u0"))
    patched.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    tiny_models.sample(patched, model, steps=1)
    assert any("did not reach middle 0.0" in w for w in record_of(patched).last.warnings)


def test_merged_tokens_of_a_unet_count_as_picture():
    from attention_loom.core.call import Span, TokenLayout

    merged = TokenLayout((Span("other", 7),))
    assert head_mix((0.5, 0.0), "identity", "image_rows", merged, "cpu").rows is None
