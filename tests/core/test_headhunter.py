"""HeadHunter: the search against brute force, scores that outlive a run, scorers in closed form, and whole searches on the host's models."""

import itertools
import json
import math
from dataclasses import replace

import host_inprocess
import numpy as np
import pytest
import torch
from attention_loom.core.attach import attach
from attention_loom.core.concepts import Concept, Located
from attention_loom.core.errors import LoomError
from attention_loom.core.guidance import Guidance
from attention_loom.core.heads import HeadSet
from attention_loom.core.hunt import bench as bench_module
from attention_loom.core.hunt.bench import Bench, Sampling, fitting, with_prompts
from attention_loom.core.hunt.run import Session, clock, read
from attention_loom.core.hunt.scorers import MEASURES, Joined, Likeness, Measured, PromptAttention, Scorer, Shot, as_scorer
from attention_loom.core.hunt.search import Hunt, Plan, best, hunt, written
from attention_loom.core.hunt.sheet import draw
from attention_loom.core.hunt.store import Scores
from attention_loom.core.methods.softpag import SoftPAG
from attention_loom.core.schedule import BlockSelection

PLAN = Plan(layers=((0, 3), (1, 3), (2, 3), (3, 3)), pairs=2, rounds=2, per_round=2, keep=0.5)


# --- the search -----------------------------------------------------------------------------------------------------------


def chosen(heads, layers=PLAN.layers):
    """The single heads a text names; a bare number is a whole layer."""
    out = set()
    for part in filter(None, heads.split(", ")):
        if part.startswith("L"):
            layer, head = part[1:].split("H")
            out.add((int(layer), int(head)))
        else:
            out |= {(int(part), h) for h in range(dict(layers)[int(part)])}
    return out


def worth(seed=0, layers=PLAN.layers):
    g = np.random.default_rng(seed)
    return {(layer, head): float(g.normal()) for layer, n in layers for head in range(n)}


def test_single_heads_that_add_up_are_found_in_order():
    w = worth()
    state = Hunt(replace(PLAN, keep=1.0))
    hunt(state, lambda heads, pair: sum(w[h] for h in chosen(heads)) + 0.1 * pair)
    assert state.found == sorted(w, key=w.get, reverse=True)[:4]
    assert state.finished
    assert state.score == pytest.approx(sum(w[h] for h in state.found) + 0.05)
    assert state.baseline == pytest.approx(0.05)
    assert state.done == state.plan.pictures == 2 * (1 + 12 + 10 + 2)


def test_later_rounds_score_heads_beside_those_found():
    """A head that is good alone and bad beside the best one is not taken in round 2."""

    def value(heads, pair):
        h = chosen(heads)
        return 5.0 * ((0, 0) in h) + 3.0 * ((1, 1) in h) + 1.0 * ((2, 2) in h) - 9.0 * ({(0, 0), (1, 1)} <= h)

    state = Hunt(replace(PLAN, per_round=1, keep=1.0))
    hunt(state, value)
    assert state.found == [(0, 0), (2, 2)]
    assert [r.score for r in state.rounds] == [5.0, 6.0]


def test_only_heads_of_the_best_layers_are_tried():
    w = dict.fromkeys(worth(), 0.0) | {(1, 2): 2.0, (3, 0): 1.0, (0, 1): 0.5}
    tried = []
    state = Hunt(PLAN)
    hunt(state, lambda heads, pair: tried.append(heads) or sum(w[h] for h in chosen(heads)))
    assert tried[:10:2] == ["", "0", "1", "2", "3"]
    assert {layer for layer, _ in state.rounds[0].scores} == {1, 3}
    assert state.found[:2] == [(1, 2), (3, 0)]
    assert state.done == state.plan.pictures == 2 * (1 + 4 + 6 + 4 + 2)


def test_ties_go_to_the_lower_layer_and_head():
    assert best({(2, 0): 1.0, (1, 1): 1.0, (1, 0): 1.0, (0, 5): 0.0}, 2) == [(1, 0), (1, 1)]
    assert Plan(((0, 2), (1, 2)), 1, keep=0.5, per_round=1).pool({0: 1.0, 1: 1.0}) == [(0, 0), (0, 1)]


def test_more_layers_stay_where_the_best_have_too_few_heads():
    assert len(Plan(PLAN.layers, 1, rounds=1, per_round=8, keep=0.25).pool({})) == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per_round": 7}, "2 rounds of 7 heads were asked for, and the chosen blocks have 12 heads"),
        ({"pairs": 0}, "pairs 0 was given"),
        ({"rounds": 0}, "rounds 0 was given"),
        ({"keep": 0.0}, "keep_layers 0 was given"),
    ],
)
def test_plans_that_cannot_be(change, words):
    with pytest.raises(LoomError, match=words):
        replace(PLAN, **change)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_named(bad):
    with pytest.raises(LoomError, match=f"the scorer gave {bad} for the picture of pair 2 with L1H1 weakened"):
        hunt(Hunt(replace(PLAN, keep=1.0)), lambda heads, pair: bad if (heads, pair) == ("L1H1", 1) else 0.0)


class Broken(Exception):
    pass


@pytest.mark.parametrize("stop", range(0, 34, 5))
def test_a_search_over_remembered_scores_goes_on_where_it_broke_off(tmp_path, stop):
    w = worth(3)
    made = []

    def session(limit):
        scores = Scores(tmp_path / "s.jsonl", "key")

        def value(heads, pair):
            if (heads, pair) not in scores.values:
                if len(made) == limit:
                    raise Broken
                made.append((heads, pair))
                scores.put(heads, pair, sum(w[h] for h in chosen(heads)), 1.0)
            return scores.values[heads, pair]

        state = Hunt(PLAN)
        try:
            hunt(state, value)
        except Broken:
            assert not state.finished
        return state

    broken = session(stop)
    done = session(None)
    whole = Hunt(PLAN)
    hunt(whole, lambda heads, pair: sum(w[h] for h in chosen(heads)))
    assert len(made) == len(set(made)), "no picture is made twice"
    assert (done.found, done.rounds, done.finished) == (whole.found, whole.rounds, True)
    assert broken.done == stop
    if stop > 12:
        assert broken.found


def test_time_that_is_up_leaves_the_best_so_far():
    w = worth()
    state = Hunt(replace(PLAN, keep=1.0, rounds=1))
    hunt(state, lambda heads, pair: sum(w[h] for h in chosen(heads)), enough=lambda: state.done >= 2 + 2 * 5)
    tried = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert state.found == sorted(tried, key=w.get, reverse=True)[:2]
    assert not state.finished
    assert state.score is None


# --- scores on disk -------------------------------------------------------------------------------------------------------


def test_scores_are_read_back_with_their_pictures(tmp_path):
    path = tmp_path / "a" / "s.jsonl"
    one = Scores(path, "k")
    picture = np.zeros((300, 200, 3), np.uint8)
    picture[:150] = 255
    one.put("L0H1", 0, 0.25, 2.0, picture)
    one.put("L0H1", 1, 0.5, 3.0)
    again = Scores(path, "k")
    assert again.values == {("L0H1", 0): 0.25, ("L0H1", 1): 0.5}
    assert again.seconds["L0H1", 1] == 3.0
    (thumb,) = again.thumbs.values()
    assert thumb.shape == (160, 107, 3)
    assert thumb[:70].min() > 240
    assert thumb[90:].max() < 15


def test_a_half_written_line_is_dropped_and_other_searches_are_not_read(tmp_path):
    path = tmp_path / "s.jsonl"
    Scores(path, "k").put("", 0, 1.0, 1.0)
    with path.open("a") as file:
        file.write('{"heads": "L0')
    cut = Scores(path, "k")
    assert cut.values == {("", 0): 1.0}
    cut.put("L1H1", 0, 2.0, 1.0)
    assert Scores(path, "k").values == {("", 0): 1.0, ("L1H1", 0): 2.0}
    assert Scores(path, "other").values == {}


# --- scorers --------------------------------------------------------------------------------------------------------------


def flat(r, g, b, n=1, size=(16, 24)):
    return torch.tensor([r, g, b]).expand(n, *size, 3)


def checks(period, size=32):
    at = torch.arange(size) // period % 2
    return (at[:, None] ^ at[None]).float()[None, ..., None].expand(1, size, size, 3)


def test_measures_in_closed_form():
    assert MEASURES["sharpness"](flat(0.3, 0.3, 0.3)) == 0.0
    assert MEASURES["sharpness"](checks(1)) > 0.9 > MEASURES["sharpness"](checks(4)) > MEASURES["sharpness"](checks(16))
    assert MEASURES["sharpness"](0.5 + 0.1 * checks(4)) == pytest.approx(MEASURES["sharpness"](checks(4)), rel=1e-4), "contrast plays no part"
    assert MEASURES["colourfulness"](flat(0.7, 0.7, 0.7)) == pytest.approx(0.0, abs=1e-4)
    # red and cyan halves: rg is 255 and -255, yb 127.5 and -127.5
    halves = torch.cat([flat(1.0, 0.0, 0.0), flat(0.0, 1.0, 1.0)], 1)
    assert MEASURES["colourfulness"](halves) == pytest.approx(math.hypot(255, 127.5), rel=1e-5)
    assert MEASURES["brightness"](flat(0.0, 1.0, 0.0)) == pytest.approx(0.7152)
    assert MEASURES["contrast"](flat(0.5, 0.5, 0.5)) == 0.0


def test_likeness_to_a_reference():
    g = torch.Generator().manual_seed(0)
    reference = torch.rand(1, 40, 40, 3, generator=g)
    shot = lambda images: Shot(images, "")  # noqa: E731
    for name in ("reference look", "reference layout"):
        scorer = Likeness.to(name, reference)
        assert scorer.score(shot(reference)) == pytest.approx(1.0)
        assert scorer.score(shot(reference * 0.5)) < 0.95
        assert scorer.key == Likeness.to(name, reference.clone()).key != Likeness.to(name, reference * 0.5).key
    mirrored = reference.flip(2)
    assert Likeness.to("reference look", reference).score(shot(mirrored)) > 0.99
    assert Likeness.to("reference layout", reference).score(shot(mirrored)) < 0.9
    by_model = Likeness.to("reference look", reference, lambda images: images.mean((1, 2)))
    assert by_model.score(shot(flat(0.5, 0.5, 0.5))) == pytest.approx(1.0, abs=1e-3)
    assert by_model.score(shot(flat(1.0, 0.0, 0.0))) < 0.7


class Fixed(Scorer):
    def __init__(self, value):
        self.value, self.name, self.key = value, f"fixed {value}", f"{value}"

    def score(self, shot):
        return self.value


def test_scorers_join():
    shot = Shot(flat(0.0, 0.0, 0.0), "")
    assert Joined(((2.0, Fixed(3.0)), (-1.0, Fixed(1.0)))).score(shot) == 5.0
    assert Joined(((1.0, Fixed(3.0)), (1.0, Fixed(6.0))), harmonic=True).score(shot) == pytest.approx(4.0)  # 2pc/(p+c)
    assert Joined(((1.0, Fixed(0.0)), (1.0, Fixed(6.0))), harmonic=True).score(shot) == 0.0
    with pytest.raises(LoomError, match="harmonic mean needs scores above 0, and fixed -1 gave -1"):
        Joined(((1.0, Fixed(-1)), (1.0, Fixed(6.0))), harmonic=True).score(shot)
    with pytest.raises(LoomError, match="two scorers of prompt attention"):
        Joined(((1.0, PromptAttention()), (1.0, PromptAttention(("red",)))))


def test_a_function_of_another_pack_scores():
    def reds(images, prompt):
        assert prompt == "a cat"
        return images[..., 0].mean()

    scorer = as_scorer(reds)
    assert scorer.score(Shot(flat(0.25, 0.0, 0.0), "a cat")) == 0.25
    assert "reds" in scorer.name
    with pytest.raises(LoomError, match="gave a list for a picture; it must give one number"):
        as_scorer(lambda images, prompt: [1, 2]).score(Shot(flat(0.0, 0.0, 0.0), ""))
    with pytest.raises(LoomError, match="the scorer socket holds a int"):
        as_scorer(3)


# --- on the host's models ---------------------------------------------------------------------------------------------------


class Eye:
    """A VAE whose pictures are three channels of the latent."""

    def decode(self, latent):
        return torch.sigmoid(latent[:, :3].movedim(1, -1))


@pytest.fixture
def tiny():
    host_inprocess.import_host()
    import tiny_models

    with torch.inference_mode():
        yield tiny_models.tiny


def make(model, scorer=Measured("brightness"), count=2, **sampling):  # noqa: B008
    given = fitting([("", model.positive)], model.negative, count, 20)
    return Bench(
        model.patcher, Eye(), {"samples": model.latent}, given, Sampling(**{"steps": 2, "cfg": 1.0, "sampler": "euler", "scheduler": "simple"} | sampling),
        SoftPAG(HeadSet(), 1.0, guidance=Guidance(3.0)), scorer,
    )  # fmt: skip


@pytest.mark.host
@pytest.mark.parametrize(("name", "cfg"), [("flux", 1.0), ("sd3", 1.0), ("sd15", 3.0)])
def test_a_picture_is_the_hosts_own_with_head_guidance(tiny, name, cfg):
    from tiny_models import sample

    model = tiny(name)
    found = make(model, cfg=cfg)
    for heads in ("", "L1H1", "1"):
        patched = attach(model.patcher, SoftPAG(HeadSet.parse(heads), 1.0, guidance=Guidance(3.0))) if heads else model.patcher
        truth = Eye().decode(sample(patched, model, cfg=cfg)).float()
        images, score = found.shoot(heads, 0)
        assert torch.equal(images, truth), heads
        assert score == pytest.approx(float((truth @ torch.tensor([0.2126, 0.7152, 0.0722])).mean()))
    assert not torch.equal(found.shoot("", 1)[0], found.shoot("", 0)[0])


def run_session(model, folder, plan=None, **how):
    found = make(model, **how.pop("bench", {}))
    return Session(found, plan or Plan(found.layers(BlockSelection()), 2, 2, 1, 1.0), folder / "heads.json", **how)


@pytest.mark.host
def test_a_whole_search_is_brute_force_and_its_file_is_read_by_head_guidance(tiny, tmp_path):
    model = tiny("flux")
    shown = []
    session = run_session(model, tmp_path)
    state = session.run(lambda s: shown.append(draw(s)))
    one = make(model)
    mean = lambda heads: sum(one.shoot(heads, p)[1] for p in range(2)) / 2  # noqa: E731
    every = [(layer, h) for layer in range(3) for h in range(2)]
    first = max(every, key=lambda h: mean(written([h])))
    second = max((h for h in every if h != first), key=lambda h: mean(written([first, h])))
    assert state.found == [first, second]
    assert state.score == pytest.approx(mean(written([first, second])))
    assert session.made < session.plan.pictures, "a round of one head has been scored already"
    assert shown

    data = json.loads((tmp_path / "heads.json").read_text())
    assert data["finished"]
    assert f"heads: {written(state.found)}" in session.text()
    assert data["rounds"][1]["heads"] == written([second])
    assert data["seeds"] == [20, 21]
    read(tmp_path / "heads.json")
    from attention_loom.nodes import softpag

    kept = softpag.configure(model.patcher, found_heads=session.file())
    assert [str(i.text) for i in kept.heads.items] == [written([first]), written([second])]
    attach(model.patcher, kept)
    with pytest.raises(LoomError, match="these heads were found on FLUX with 3 blocks of 2 heads, and this model is SD3"):
        attach(tiny("sd3").patcher, kept)
    again = run_session(model, tmp_path)
    again.run()
    assert again.made == 0
    assert again.hunt.found == state.found


@pytest.mark.host
def test_an_interrupt_keeps_what_was_found_and_the_next_run_goes_on(tiny, tmp_path):
    model = tiny("flux")

    class Stop(Exception):
        pass

    def stopping(session, after):
        shoot = session.bench.shoot
        count = itertools.count()

        def limited(heads, pair):
            if next(count) == after:
                raise Stop
            return shoot(heads, pair)

        object.__setattr__(session.bench, "shoot", limited)
        return session

    first = stopping(run_session(model, tmp_path), 7)
    with pytest.raises(Stop):
        first.run()
    data = json.loads((tmp_path / "heads.json").read_text())
    assert not data["finished"]
    assert len(data["heads"]) == 1
    assert "not finished" in first.text()
    second = run_session(model, tmp_path)
    second.run()
    assert second.resumed == first.made == 7
    whole = run_session(model, tmp_path / "elsewhere")
    whole.run()
    assert second.made + first.made == whole.made
    assert second.hunt.found == whole.hunt.found
    assert json.loads((tmp_path / "heads.json").read_text())["finished"]


@pytest.mark.host
def test_a_search_that_takes_too_long_is_refused_with_the_estimate_or_cut_short(tiny, tmp_path):
    model = tiny("flux")
    session = run_session(model, tmp_path, minutes=1e-9)
    with pytest.raises(LoomError, match=r"the search would take about \d+ s: 28 pictures at .* s, 2 of them made. minutes allows 1e-09"):
        session.run()
    assert session.made == 2
    cut = run_session(model, tmp_path, minutes=1e-9, partial=True)
    cut.run()
    assert not cut.hunt.finished
    assert cut.made == 1
    assert clock(5400) == "1 h 30 min"


@pytest.mark.host
def test_prompt_attention_is_the_column_of_the_words(tiny, monkeypatch):
    """Text mass of FLUX minus the share of the tokens that are not words: words 1 to 3 of 5."""
    model = tiny("flux")
    given = {}

    def found(clip, text, words, length):
        given.update(words=words, length=length)
        return Located(tuple(Concept(w, (1,), ()) for w in words), (1, 2, 3), 5)

    monkeypatch.setattr(bench_module, "locate", found)
    bench = replace(make(model, PromptAttention()), clip=object(), pairs=tuple(replace(p, text="a red cat") for p in make(model).pairs))
    _, score = bench.shoot("", 0)
    assert given == {"words": [], "length": 5}
    assert 0.05 < score < 0.6
    _, one = replace(bench, scorer=PromptAttention(("red",))).shoot("", 0)
    assert 0 < one < score
    assert bench.shoot("", 0)[1] == score
    with pytest.raises(LoomError, match="prompt attention needs the prompts as text"):
        make(model, PromptAttention()).shoot("", 0)


def test_prompts_take_turns_and_lend_settings():
    class Clip:
        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, text):
            return [[f"cond {text}", {"pooled_output": f"pooled {text}"}]]

    made = with_prompts(Clip(), ["a", "b"], [["old", {"pooled_output": "old", "guidance": 3.5}]])
    assert made == [(t, [[f"cond {t}", {"pooled_output": f"pooled {t}", "guidance": 3.5}]]) for t in "ab"]
    pairs = fitting(made, None, 3, 7)
    assert [(p.text, p.seed) for p in pairs] == [("a", 7), ("b", 8), ("a", 9)]
    with pytest.raises(LoomError, match="2 prompts were given and pairs is 1; set pairs to 2 or more"):
        fitting(made, None, 1, 7)


@pytest.mark.host
def test_blocks_limit_the_pool(tiny):
    found = make(tiny("flux"))
    assert found.layers(BlockSelection()) == ((0, 2), (1, 2), (2, 2))
    assert found.layers(BlockSelection.parse("s0-1")) == ((1, 2), (2, 2))
    with pytest.raises(LoomError, match="blocks '9' selects nothing; this FLUX model has layers 0 to 2"):
        found.layers(BlockSelection.parse("9"))


def test_no_such_heads_file(tmp_path):
    with pytest.raises(LoomError, match=r"there is no heads file a.json in .*; run Find Guidance Heads first"):
        read(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[[0, 1]]")
    with pytest.raises(LoomError, match="there are b"):
        read(tmp_path / "a.json")
