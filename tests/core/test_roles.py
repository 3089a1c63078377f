"""What each conditioning is, under guiders that order them in their own way, and beside passes of other nodes."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.call import roles_of, rows_of
from attention_loom.core.errors import LoomError
from attention_loom.core.methods.spacetime import SpaceTime
from observing import Observer
from softpag_runs import softpag
from test_spacetime import LEFT, RIGHT, regions

HOST = [pytest.mark.host, pytest.mark.usefixtures("host")]


def test_rows_are_roles_not_places():
    roles = roles_of({"positive": [{"uuid": "p"}, {"uuid": "p2"}], "middle": [{"uuid": "m"}], "negative": [{"uuid": "n"}]})
    assert roles == {"p": 0, "p2": 0, "m": 2, "n": 1}
    dual = {"cond_or_uncond": [0, 1, 2], "uuids": ["n", "m", "p"]}
    assert rows_of(dual, roles) == (1, 2, 0)
    assert rows_of({"cond_or_uncond": [0], "uuids": ["n"]}, roles) == (1,), "a foreign pass of the negative prompt alone"
    assert rows_of({"cond_or_uncond": [1, 0], "uuids": [("n", 3), ("p", 3)]}, roles) == (1, 0), "a window of an endless clip"
    assert rows_of({"cond_or_uncond": [0, 1], "uuids": ["new", "n"]}, roles) == (0, 1), "unknown ones keep the host's number"
    assert rows_of({"cond_or_uncond": [0, 1]}, roles) == (0, 1)


def dual(patcher, model, style, watch=None):
    """Sampled by the host's guider of two positive prompts, which evaluates negative, middle, positive in this order."""
    import comfy.sample
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    clone = patcher.clone()
    guider = Guider_DualCFG(clone)
    if watch is not None:
        clone.set_model_unet_function_wrapper(lambda apply, args: watch(guider, apply(args["input"], args["timestep"], **args["c"]), args))
    cond, extra = model.positive[0]
    guider.set_conds(model.positive, [[0.5 * cond, extra]], model.negative)
    guider.set_cfg(3.0, 2.0, style == "nested")
    sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", 1)
    noise = comfy.sample.prepare_noise(model.latent, 1)
    return guider.sample(noise, model.latent, comfy.samplers.ksampler("euler"), sigmas, disable_pbar=True, seed=1)


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.parametrize("name", ["sd15", "wan"])
class TestDualCFG:
    pytestmark = HOST

    def test_descriptions_of_places_reach_the_positive_prompt_alone(self, name, style):
        model = tiny_models.tiny(name)

        def of_each(patcher):
            seen = {}

            def watch(guider, out, args):
                roles = {entry["uuid"]: role for role, entries in guider.conds.items() for entry in entries}
                uuids = args["c"]["transformer_options"]["uuids"]
                seen.update({roles[u]: part.clone() for u, part in zip(uuids, out.chunk(len(uuids)), strict=True)})
                return out

            dual(patcher, model, style, watch)
            return seen

        stock = of_each(model.patcher)
        ours = of_each(attach(model.patcher, SpaceTime(locals=regions(name, LEFT, RIGHT), weight=1.0)))
        assert not torch.allclose(stock["positive"], ours["positive"], atol=1e-3)
        for role in ("middle", "negative"):
            assert torch.allclose(stock[role], ours[role], atol=1e-4), role

    def test_every_call_says_which_prompts_it_holds(self, name, style):
        observer = Observer()
        dual(attach(tiny_models.tiny(name).patcher, observer), tiny_models.tiny(name), style)
        assert {row for call in observer.seen for row in call.rows} == {0, 1, 2}
        order = [row for call in observer.seen if call.block.ordinal == 0 and call.kind == "self" for row in call.rows]
        assert sorted(order) == [0, 1, 2]


class TestPasses:
    pytestmark = HOST

    def test_a_foreign_pass_that_skips_layers_is_not_taken_for_the_main_one(self):
        """Skip-layer guidance in front of ours evaluates the same prompt with a block left out."""
        from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

        model = tiny_models.tiny("flux")
        made = getattr(SkipLayerGuidanceDiT, "execute", None) or SkipLayerGuidanceDiT().skip_guidance
        out = made(model=model.patcher, scale=3.0, start_percent=0.0, end_percent=1.0, double_layers="0", single_layers="", rescaling_scale=0.0)
        base = out[0] if isinstance(out, tuple) else out.result[0]
        method = softpag("-1", u=0.5)
        plain = tiny_models.sample(attach(base, method), model)
        reused = tiny_models.sample(attach(base, replace(method, reuse=True)), model)
        without = tiny_models.sample(base, model)
        assert float((plain - reused).abs().max()) < 1e-3 < 0.1 < float((plain - without).abs().max())

    def test_what_rests_in_extra_passes_is_not_taken_over(self):
        model = tiny_models.tiny("wan")
        contrast = SpaceTime(locals=regions("wan", LEFT, RIGHT), mode="contrast", weight=1.0)
        patched = attach(attach(model.patcher, contrast), replace(softpag("-1"), reuse=True))
        with pytest.raises(LoomError, match="acts there alone with mode contrast; switch reuse_prefix off"):
            tiny_models.sample(patched, model)
        tiny_models.sample(attach(attach(model.patcher, replace(contrast, mode="affine")), replace(softpag("-1"), reuse=True)), model, steps=1)
        assert record_of(patched) is not None
