"""Columns of words pruned by themselves: what the picture reads from chosen words, in joint and in cross-attention."""

import json

import pytest
import torch
from attention_loom.core.concepts import Concept, Located
from attention_loom.core.errors import LoomError
from attention_loom.core.heads import HeadSet
from attention_loom.core.inspect.gallery import Look, draw
from attention_loom.core.inspect.importance import FAST, GUIDANCE, PRUNED
from attention_loom.core.inspect.summary import as_json, heads_text, text, top_heads
from attention_loom.core.methods.prune_part import WORDS
from inspect_runs import by_hand, inspect, scores, spearman

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
FOUND = Located((Concept("red", (1,), ("red",)), Concept("blue ball", (3, 4), ("blue", "ball"))), (1, 2, 3, 4), 5)
HOW = {"how": {"words": FOUND}, "percents": (0.0,)}
READERS = {"flux": (1, slice(5, 11), 0), "wan": (3, slice(None), 0), "sd15": (3, slice(None), 0)}
"""The second block's attention to text as a call of an evaluation, the picture's rows in it, and where its text begins."""


def without(rows, first, every=5):
    """What `by_hand` makes of a head: its result less what its picture reads from tokens 1, 3 and 4 of each repeat of the text."""

    def change(out, q, k, v):
        keys = torch.zeros(k.shape[1], dtype=torch.bool)
        for start in range(first, first + every * (1 if rows != slice(None) else k.shape[1] // every), every):
            keys[[start + 1, start + 3, start + 4]] = True
        a = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        out = out.clone()
        out[:, rows] -= a[:, rows][..., keys] @ v[:, keys]
        return out

    return change


@pytest.mark.parametrize("name", READERS)
def test_words_are_put_out_as_by_an_explicit_softmax(name):
    at, rows, first = READERS[name]
    seen, keep = by_hand(without(rows, first), at)
    study, out, model, _ = inspect(name, after=keep, asked={"part": WORDS}, **HOW)
    assert set(seen) == {*PRUNED} - {"importance rank"}
    for metric, value in seen.items():
        assert study.pruned[0][1, 1][metric] == pytest.approx(value, rel=2e-3, abs=1e-7), metric
    assert study.pruned[0][1, 1]["importance"] > 0
    from tiny_models import sample, tiny

    assert torch.equal(out, sample(tiny(name).patcher, model))


@pytest.mark.parametrize("name", ["sd3", "sdxl", "qwen_image", "z_image", "hunyuan_video", "ltx", "cosmos", "chroma"])
def test_words_are_pruned_in_every_family(name):
    study, *_ = inspect(name, asked={"part": WORDS}, **HOW)
    assert (scores(study, "importance") > 0).all()


def test_heads_of_cross_attentions_are_drawn_and_listed_as_such():
    study, *_ = inspect("wan", asked={"part": WORDS}, **HOW)
    heads = top_heads(study, "importance", 3)
    assert {place.kind for place, _ in heads} == {"cross"}
    assert heads_text(heads).startswith("crossL")
    assert f"(part words: red, blue ball) in 4 evaluations; most: {heads_text(top_heads(study, 'importance', 5))}" in text(study, "importance", heads)
    data = json.loads(as_json(study, "importance", "highest", heads))
    assert ["importance" in place["mean"] for place in data["places"]] == [place["kind"] == "cross" for place in data["places"]]
    assert len(draw(study, "heads", Look("importance"), heads)) == len(draw(study, "cross-attention", Look("importance"), heads)) == 1
    with pytest.raises(LoomError, match=r"'crossL\dH\d' is a head of a cross-attention, which reads the text; heads are chosen here among those that read the picture"):
        HeadSet.parse(heads_text(heads))
    assert {place.kind for place, _ in top_heads(inspect("flux", asked={"part": WORDS}, **HOW)[0], "importance", 3)} == {"joint"}


def test_the_negative_prompt_has_other_words_at_these_places():
    """Guidance D_c - D_u: pruning both prompts, of which only the positive has the words, changes it as much as D_c."""
    for name in ("wan", "flux"):
        study, *_ = inspect(name, asked={"part": WORDS, "guidance": True}, cfg=3.0, **HOW)
        plain, *_ = inspect(name, asked={"part": WORDS}, cfg=3.0, **HOW)
        for at, found in study.pruned[0].items():
            assert found["importance"] == pytest.approx(plain.pruned[0][at]["importance"], rel=1e-3)
        ratios = [found[GUIDANCE] / found["importance"] for found in study.pruned[0].values()]
        assert max(ratios) / min(ratios) == pytest.approx(1, rel=1e-3), "||D_c|| / ||D_c - D_u||, whatever the head"


def test_fast_ranks_words_and_prefixes_are_handed_on():
    for name in ("flux", "wan"):
        full, *_ = inspect(name, asked={"part": WORDS}, **HOW)
        fast, *_ = inspect(name, mode="fast", asked={"part": WORDS}, **HOW)
        reused, *_ = inspect(name, asked={"part": WORDS, "reuse_prefix": True}, **HOW)
        assert reused.pruned == full.pruned
        assert reused.handed_on > 0
        assert spearman(scores(fast, FAST), scores(full, "importance")) > 0.7


def test_what_does_not_fit_is_said_before_the_first_step():
    with pytest.raises(LoomError, match="part words prunes what the picture reads from 'words', and none were given; write words of the prompt there"):
        inspect("flux", asked={"part": WORDS})
    from attention_loom.core.methods.prune import Pruning

    with pytest.raises(LoomError, match="knows the words' places in one positive prompt, and this run has 2"):
        Pruning(part=WORDS, words=FOUND).check_prompts({"positive": [{}, {}]}, 1)
    with pytest.raises(LoomError, match="layer 0 could not be pruned: words were not read in L0 .*: it has 5 text tokens, the prompt makes 7; .*leave it out"):
        inspect("flux", asked={"part": WORDS}, how={"words": Located(FOUND.concepts, FOUND.words, 7)})
