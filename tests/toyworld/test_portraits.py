"""Portraits and a scene: likeness has its anchors and sees each change it speaks of; the rows' graphs differ in what they compare."""

import math
from dataclasses import replace

import pytest
import torch
from attention_loom.toyworld.likeness import likeness, pattern_likeness
from attention_loom.toyworld.readings import read
from attention_loom.toyworld.scenes import Caption, random_scene, render
from attention_loom.toyworld.scoreboard import portraits
from attention_loom.toyworld.scoreboard.footage import Footage
from attention_loom.toyworld.scoreboard.graphs import SAMPLER, base
from attention_loom.toyworld.scoreboard.rows import select
from attention_loom.toyworld.segment_node import ToyWorldSegment, segment

CAPTION = "a striped red circle on the left and a blue square on the right on a green background"


def numbers(frames, caption=CAPTION):
    return portraits.measure(Footage(caption, frames, None, ""))


def test_rendered_truth_is_alike_and_its_pattern_is_the_portraits():
    found = [numbers(portraits.rendered(caption, seed), caption) for caption, seed in portraits.prompts(8)]
    assert min(f["own_likeness"] for f in found) > 0.85 and max(f["cross_likeness"] for f in found) < 0.5
    assert all(math.isnan(f["pattern_likeness"]) or f["pattern_likeness"] > 0.9 for f in found)
    assert any(not math.isnan(f["pattern_likeness"]) for f in found)
    assert all(f["portraits"] == f["right"] == 1.0 for f in found)


def test_each_change_lowers_its_number():
    import random

    frames = portraits.rendered(CAPTION, 7)
    truth = numbers(frames)
    given = Caption.parse(CAPTION)

    def scene(*things):
        drawn = render(random_scene(random.Random(3), Caption(things, given.ground)), 1, 128)
        return numbers(torch.cat([frames[:2], drawn]))

    circle, square = given.things
    plain = scene(replace(circle, texture="plain"), square)
    assert plain["pattern_likeness"] == 0.0 and truth["pattern_likeness"] > 0.9
    assert scene(replace(circle, shape="triangle"), square)["own_likeness"] < truth["own_likeness"] - 0.05
    assert scene(replace(circle, colour="yellow"), square)["own_likeness"] < truth["own_likeness"] - 0.3
    swapped = scene(replace(square, place="left"), replace(circle, place="right"))
    assert abs(swapped["own_likeness"] - truth["own_likeness"]) < 0.06, "a place is no likeness"
    alike = scene(circle, replace(square, colour="red"))
    assert alike["cross_likeness"] > truth["cross_likeness"] + 0.2
    gone = numbers(torch.cat([frames[:2], frames[2:] * 0 + torch.tensor([0.05, 0.23, 0.09])]))
    assert gone["own_likeness"] == 0.0 and gone["complete"] == 0.0
    no_portrait = numbers(torch.cat([frames[2:] * 0 + 0.26, frames[1:]]))
    assert no_portrait["own_likeness"] == pytest.approx(likeness(read(frames[2:], CAPTION), 1, read(frames[1:2], portraits.portrait(square)), 0))
    assert no_portrait["portraits"] == 0.5
    assert math.isnan(pattern_likeness(read(frames[2:], CAPTION), 1, read(frames[1:2], portraits.portrait(square)), 0)), "a plain portrait has no pattern"


def test_prompts_name_two_colours_and_scenes_hide_patterns():
    drawn = portraits.prompts(12)
    assert portraits.prompts(5) == drawn[:5]
    for caption, _ in drawn:
        given = Caption.parse(caption)
        assert len({thing.colour for thing in given.things}) == 2 and [thing.place for thing in given.things] == ["left", "right"]
        assert given.ground.texture == "plain" and all(word not in portraits.scene(given) for word in ("striped", "dotted"))
    assert any("striped" in caption or "dotted" in caption for caption, _ in drawn)
    assert portraits.portrait(Caption.parse(CAPTION).things[0]) == "a large striped red circle in the centre on a grey background"


def test_the_segmenter_finds_things_and_says_what_is_missing():
    frames = portraits.rendered(CAPTION, 7)
    (masks,) = ToyWorldSegment().masks(frames[2:], CAPTION)
    whole = read(frames[2:], CAPTION)
    assert torch.equal(masks, whole.masks[:, 0].float()) and masks.shape == (2, 128, 128)
    assert not segment(frames[2:] * 0, [CAPTION]).any()
    with pytest.raises(ValueError, match="3 pictures and 1 captions"):
        segment(frames, [CAPTION])


@pytest.mark.parametrize("name", ["ir-sd3-two", "ir-sd15-two"])
def test_arms_differ_in_what_they_compare(name):
    [row] = select([name])
    shot = row.shots(1)[0]
    given = Caption.parse(shot.caption)
    drawn = {arm.name: arm.graph(shot) for arm in row.arms if arm.graph}
    told = {arm: graph["method_1"]["inputs"] for arm, graph in drawn.items() if "method_1" in graph}
    plain = told["IR-Diffusion"]
    assert {key: value for key, value in told["K/V sharing"].items() if plain[key] != value} == {"isolation": False, "references": "in place", "cross_lambda": 0.0}
    assert {key: value for key, value in told["isolation alone"].items() if plain[key] != value} == {"references": "off", "cross_lambda": 0.0}
    if "words hidden" in told:
        assert told["words hidden"]["scene_prompt"] == drawn["stock"]["positive"]["inputs"]["text"]
        assert told["words hidden"]["subject_words"].splitlines() == [f"{t.colour} {t.shape}" for t in given.things]
    for arm, graph in drawn.items():
        texts = {key: node["inputs"]["text"] for key, node in graph.items() if node["class_type"] == "CLIPTextEncode"}
        assert texts["positive"] == portraits.scene(given) and texts["portrait_2"] == portraits.portrait(given.things[1])
        assert graph[SAMPLER]["inputs"]["latent_image"] == ["batch", 2]
        if arm != "stock":
            first = graph["first"]["inputs"]
            assert first["model"] == base(shot)[SAMPLER]["inputs"]["model"] and first == graph[SAMPLER]["inputs"] | {"model": first["model"]}
            assert graph["masks_scene"]["inputs"]["captions"] == shot.caption
