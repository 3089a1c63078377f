"""Blocks before a pruned layer, handed on: the same numbers from less work."""

import pytest
import torch
from attention_loom.core.attach import record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.inspect import prune as prune_module
from attention_loom.core.inspect.summary import text, top_heads
from attention_loom.core.methods.prune import Pruning
from attention_loom.core.schedule import BlockSelection
from inspect_runs import inspect

TRANSFORMERS = ("flux", "sd3", "wan", "wan_vace", "lumina2", "z_image", "qwen_image", "hunyuan_video", "ltx", "mochi", "cosmos", "cosmos_predict2")


@pytest.mark.host
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_handed_on_blocks_give_the_same_numbers_bit_for_bit(name):
    plain, *_ = inspect(name, percents=(0.0,), prune="zero")
    reused, out, model, patched = inspect(name, percents=(0.0,), prune="zero", asked={"reuse_prefix": True})
    assert reused.pruned == plain.pruned
    layers, heads = sorted({layer for layer, _ in plain.pruned[0]}), model.facts.heads
    assert reused.handed_on >= heads * sum(layers), "all before each layer, for each of its heads; and where the walk goes on"
    assert reused.evaluations == plain.evaluations == record_of(patched).last.passes[Pruning.owner]
    assert "blocks before a pruned layer were handed on" in text(reused, "importance", top_heads(reused, "importance", 1))
    from tiny_models import sample, tiny

    with torch.inference_mode():
        assert torch.equal(out, sample(tiny(name).patcher, model))


@pytest.mark.host
@pytest.mark.parametrize(
    "how",
    [{"mode": "screen"}, {"mode": "screen", "asked": {"guidance": True}}, {"asked": {"guidance": True}}, {"latent": (2, 16, 4, 6)}, {"how": {"blocks": BlockSelection.parse("2")}}],
    ids=str,
)
def test_handing_on_goes_with_screening_guidance_batches_and_chosen_blocks(how, monkeypatch):
    monkeypatch.setattr(prune_module, "LAYERS", 2)
    asked = how.pop("asked", {})
    plain, *_ = inspect("flux", asked=asked, **how)
    reused, *_ = inspect("flux", asked=asked | {"reuse_prefix": True}, **how)
    assert reused.pruned == plain.pruned
    assert reused.layer_importance == plain.layer_importance
    assert reused.handed_on > 0


@pytest.mark.host
def test_only_what_is_not_handed_on_is_computed(monkeypatch):
    """FLUX, 3 blocks of 2 heads: 6 evaluations of the blocks from the pruned one on, and two pieces of one block each between them."""
    counts = []

    def keep(model):
        def count(func, q, *args, **kw):
            counts.append(len(q))
            return func(q, *args, **kw)

        model.model_options["transformer_options"] = model.model_options.get("transformer_options", {}) | {"optimized_attention_override": count}
        return model

    for reuse, calls in ((False, 2 * 3 * 3), (True, 2 * (3 + 2 + 1) + 2)):
        counts.clear()
        inspect("flux", percents=(0.0,), after=keep, prune="zero", asked={"reuse_prefix": reuse}, cfg=1.0)
        assert len(counts) == calls + 2 * 3, "and the two steps"


@pytest.mark.host
def test_handing_on_is_refused_where_blocks_are_no_wholes():
    with pytest.raises(LoomError, match="reuse_prefix hands whole blocks on, which SD 1.5 / SDXL does not allow; switch it off"):
        inspect("sd15", asked={"reuse_prefix": True})
    with pytest.raises(LoomError, match="reuse_prefix is for heads pruned one by one and importance is 'fast'"):
        inspect("flux", mode="fast", asked={"reuse_prefix": True})
