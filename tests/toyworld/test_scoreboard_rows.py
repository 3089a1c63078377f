"""Rows on guidance, sizes and places: what their graphs hold, so that arms differ in what the row speaks of and in nothing else."""

import pytest
from attention_loom.core.regions import Box, Disc, parse
from attention_loom.toyworld.scenes import Caption
from attention_loom.toyworld.scoreboard import meter as meter_module
from attention_loom.toyworld.scoreboard.graphs import SAMPLER, SAVE, SECOND, base
from attention_loom.toyworld.scoreboard.meter import Meter
from attention_loom.toyworld.scoreboard.rows import select


def graphs(name):
    """{arm: its graph} of a row's first shot, and the shot."""
    [row] = select([name])
    shot = row.shots(1)[0]
    return {arm.name: arm.graph(shot) for arm in row.arms if arm.graph}, shot


def classes(graph):
    return {node["class_type"] for node in graph.values()}


@pytest.mark.parametrize("model", ["sd3", "sd15"])
def test_guidance_arms_cost_what_the_notes_say(model):
    drawn, shot = graphs(f"softpag-{model}-cfg")
    told = {name: (graph[SAMPLER]["inputs"]["steps"], graph[SAMPLER]["inputs"]["cfg"]) for name, graph in drawn.items()}
    assert told["CFG 3"] == told["SoftPAG"] == (shot.steps, 3.0)
    assert told["CFG 3, 1.5x the steps"] == (1.5 * shot.steps, 3.0)
    assert drawn["CFG 3"] == base(shot)
    alone, shot = graphs(f"softpag-{model}-alone")
    assert {name: graph[SAMPLER]["inputs"]["cfg"] for name, graph in alone.items() if graph[SAMPLER]["inputs"]["cfg"] != 1.0} == {"CFG 3": 3.0}
    assert alone["twice the steps"][SAMPLER]["inputs"]["steps"] == 2 * shot.steps
    scales = {node["inputs"]["scale"] for graph in (*drawn.values(), *alone.values()) for node in graph.values() if "scale" in node["inputs"]}
    assert scales == {3.0}


@pytest.mark.parametrize(("name", "side"), [("entropy-sd3-half", 64), ("entropy-sd15-larger", 192)])
def test_arms_of_a_size_end_at_that_size(name, side):
    drawn, _ = graphs(name)
    for arm, graph in drawn.items():
        ends = {"native size, scaled down": "scale", "native size, scaled up": "scale", "second pass": "larger"}.get(arm, "latent")
        assert (graph[ends]["inputs"]["width"], graph[ends]["inputs"]["height"]) == (side, side)
        assert graph["latent"]["inputs"]["width"] == (side if ends == "latent" else 128)
        assert (graph[SAVE]["inputs"]["images"] == ["scale", 0]) == (ends == "scale")
    told = drawn["Any Size"]["method_1"]["inputs"]
    assert (told["train_width"], told["train_height"]) == (128, 128)


def test_a_second_pass_goes_on_from_the_first():
    graph = graphs("entropy-sd15-larger")[0]["second pass"]
    assert graph["larger"]["inputs"]["samples"] == [SAMPLER, 0]
    assert graph[SECOND]["inputs"]["latent_image"] == ["larger", 0]
    assert graph[SECOND]["inputs"]["denoise"] == 0.5
    assert graph["decode"]["inputs"]["samples"] == [SECOND, 0]
    assert graph[SAMPLER]["inputs"]["denoise"] == 1.0
    others = [g for name, g in graphs("entropy-sd15-larger")[0].items() if name != "second pass"]
    assert all(g[SAMPLER]["inputs"]["latent_image"] != graph[SAMPLER]["inputs"]["latent_image"] for g in others)


def test_places_and_descriptions_are_those_of_the_caption_and_of_the_areas():
    drawn, shot = graphs("spacetime-named")
    left, right = Caption.parse(shot.caption).things
    for arm, place in (("Place Subjects", Disc), ("Place Subjects, halves", Box), ("Place Subjects, with the ground", Disc)):
        inputs = drawn[arm]["method_1"]["inputs"]
        regions = parse(inputs["regions"], None, 0.2)
        assert [type(region.place) for region in regions] == [place, place]
        whole = [drawn["areas"][f"text_{n}"]["inputs"]["text"] for n in (0, 1)]
        assert [region.text for region in regions] == (whole if "ground" in arm else [text.split(" on ")[0] for text in whole])
        assert [text.split(" on ")[0].split()[-2:] for text in whole] == [[thing.colour, thing.shape] for thing in (left, right)]
        assert inputs["prefix"] == ""
    first, second = (region.place for region in parse(drawn["Place Subjects, halves"]["method_1"]["inputs"]["regions"], None, 0.2))
    assert (first, second) == (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))


def test_where_places_are_unnamed_no_prompt_names_them():
    drawn, shot = graphs("spacetime-unnamed")
    assert "on the left" in shot.caption
    for graph in drawn.values():
        texts = [node["inputs"]["text"] for node in graph.values() if node["class_type"] == "CLIPTextEncode"]
        assert not any("left" in text or "right" in text for text in texts)
        assert Caption.parse(graph["positive"]["inputs"]["text"]).things[0].place == ""
    assert "LoomSpaceTime" in classes(drawn["Place Subjects"])
    assert "LoomSpaceTime" not in classes(drawn["stock"])


def test_the_time_of_a_second_pass_is_added(monkeypatch):
    class Host:
        process = None

        def get(self, path):
            return {"devices": [{"type": "cpu", "name": "cpu"}]}

    now = iter([10.0, 13.0, 20.0, 22.0, 24.0])
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: next(now))
    meter = Meter(Host())
    for node, steps in ((SAMPLER, 1), ("larger", 0), (SECOND, 2)):
        meter.entered(node)
        for step in range(steps):
            meter.progress(node, step + 1, steps)
    assert meter.seconds == 3.0 + 4.0
