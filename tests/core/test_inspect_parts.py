"""Parts of joint attention pruned by themselves: against an explicit softmax, and where there are none."""

import pytest
import torch
from attention_loom.core.call import AttentionCall, Block, Seen, Span, TokenLayout
from attention_loom.core.errors import LoomError
from attention_loom.core.inspect.importance import PRUNED
from attention_loom.core.inspect.summary import text, top_heads
from attention_loom.core.methods.prune_part import JOINT, share, sides
from attention_loom.core.weave import Draft
from inspect_runs import by_hand, inspect, of_part, scores


@pytest.mark.host
@pytest.mark.parametrize("part", JOINT)
def test_a_part_is_put_out_as_by_an_explicit_softmax(part):
    seen, keep = by_hand(lambda out, q, k, v: out - of_part(part, q, k, v))
    study, out, model, _ = inspect("flux", percents=(0.0,), after=keep, asked={"part": part})
    assert set(seen) == {*PRUNED} - {"importance rank"}
    for metric, value in seen.items():
        near = 5e-7 if metric == "importance angle" else 1e-7  # one minus a cosine in single precision: 6e-8 a step
        assert study.pruned[0][1, 1][metric] == pytest.approx(value, rel=2e-3, abs=near), metric
    assert study.how["part"] == part
    assert f"6 heads pruned one by one (part {part})" in text(study, "importance", top_heads(study, "importance", 1))
    from tiny_models import sample, tiny

    with torch.inference_mode():
        assert torch.equal(out, sample(tiny("flux").patcher, model))


def test_the_four_parts_make_the_whole_with_masks_scales_and_shared_keys():
    g = torch.Generator().manual_seed(0)
    layout = TokenLayout((Span("text", 4), Span("image", 6, (1, 2, 3)), Span("reference", 3)))
    q, k, v = (torch.randn(2, h, 13, 8, generator=g, dtype=torch.float64) for h in (4, 2, 2))
    mask = torch.zeros(2, 1, 13, 13, dtype=torch.float64).masked_fill(torch.rand(2, 1, 13, 13, generator=g) < 0.2, -1e9)

    def dense(q, k, v, mask=None):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    seen = Seen(q, k, v, mask, 0.7, dense)
    call = AttentionCall("FLUX", Block("double", 0, 0, 1), "joint", 4, 8, layout, layout, 1.0, 0.0, (0,), 2, q.device, q.dtype)
    parts = [share(part, call, seen, Draft(call), "me") for part in JOINT]
    whole = (q @ k.repeat_interleave(2, 1).mT * 0.7 + mask).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(sum(parts), whole)
    for part, found in zip(JOINT, parts, strict=True):
        assert (found[:, :, ~sides(part, layout)[0]] == 0).all()
    padded = TokenLayout((Span("text", 4), Span("image", 6, (1, 2, 3)), Span("other", 3)))
    assert [int(side.sum()) for side in sides("image_text", padded)] == [6, 4], "padding is neither"
    changed = Draft(call)
    changed.bias("Another node", torch.zeros(1, 1, 13))
    with pytest.raises(LoomError, match=r"part image_text is taken from the model's own attention, and Another node changes that in double 0; take it out"):
        share("image_text", call, seen, changed, "me")


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd3", "lumina2", "z_image", "mochi", "qwen_image"])
def test_parts_exist_in_every_joint_family(name):
    study, *_ = inspect(name, percents=(0.0,), asked={"part": "image_text"})
    assert (scores(study, "importance") > 0).all()
    assert study.evaluations == len(study.pruned[0]) == 4


@pytest.mark.host
def test_parts_are_refused_where_text_is_read_apart():
    for mode in ("full", "fast"):
        with pytest.raises(LoomError, match="part text_image needs attention over text and picture together, and Wan reads its text apart; set part to whole or words"):
            inspect("wan", mode=mode, asked={"part": "text_image"})
    with pytest.raises(LoomError, match="part 'image' was given; choose one of whole, image_image"):
        inspect("flux", asked={"part": "image"})
