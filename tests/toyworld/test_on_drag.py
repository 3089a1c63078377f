"""Measures of a drag on rendered pictures, one corruption each; and the rows that use them."""

import random

import pytest
import torch
from attention_loom.toyworld.drag_study import SHIFT, cases, table
from attention_loom.toyworld.on_drag import COLUMNS, LOST, measure_drag, moved, perfectly
from attention_loom.toyworld.readings import read
from attention_loom.toyworld.scenes import Caption, random_scene, render
from attention_loom.toyworld.scoreboard.footage import Footage
from attention_loom.toyworld.scoreboard.graphs import SAMPLER, SAVE
from attention_loom.toyworld.scoreboard.rows import select
from attention_loom.toyworld.scoreboard.rows.diffuhaul import DX, haul


@pytest.fixture(scope="module")
def case():
    return cases(1, 128)[0]


def measured(case, after):
    return measure_drag(read(case.frame, case.words()), read(after, case.words()), SHIFT, 0.0)


def test_a_perfect_drag_reads_as_one(case):
    for one in cases(6, 128):
        found = measured(one, perfectly(read(one.frame, one.words()), SHIFT, 0.0))
        assert found["drag_arrived"] == 1 and found["drag_error"] < 0.02 and found["drag_trace"] < 0.02 and found["drag_background"] < 1e-3
        assert found["drag_identity"] > 0.9 and found["drag_shape"] > 0.9 and set(found) == set(COLUMNS)


def test_each_fault_is_seen_by_its_measure(case):
    before = read(case.frame, case.words())
    perfect = perfectly(before, SHIFT, 0.0)
    stayed = measured(case, case.frame)
    assert stayed["drag_arrived"] == 0 and stayed["drag_trace"] == 1 and abs(stayed["drag_error"] - SHIFT) < 0.01
    ghost = measured(case, torch.where(before.masks[0, 0][None, ..., None], 0.3 * case.frame + 0.7 * perfect, perfect))
    assert 0.2 < ghost["drag_trace"] < 0.4 and ghost["drag_arrived"] == 1
    gone = measured(case, perfectly(before, 2.0, 0.0))
    assert gone["drag_arrived"] == 0 and gone["drag_error"] == LOST and gone["drag_identity"] == 0
    tinted = perfect.clone()
    tinted[:, :16] += 0.2
    assert measured(case, tinted)["drag_background"] > 0.03
    other = random_scene(random.Random(5), Caption.parse(case.words("right")))
    assert measured(case, render(other, 1, 128))["drag_identity"] < 0.9
    near = measured(case, perfectly(before, SHIFT - 0.12, 0.0))
    assert near["drag_arrived"] == 0 and 0.1 < near["drag_error"] < 0.14
    nothing = measure_drag(read(torch.full_like(case.frame, 0.2), case.words()), before, SHIFT, 0.0)
    assert all(value != value for value in nothing.values()), "where there was no object, nothing is judged"


def test_masks_are_moved_by_whole_pixels():
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1, 1] = mask[3, 4] = True
    assert moved(mask, 2, 1).nonzero().tolist() == [[2, 3]]
    assert moved(mask, -1, -1).nonzero().tolist() == [[0, 0], [2, 3]]


def test_the_table_of_the_study():
    values = dict.fromkeys(COLUMNS, 0.5)
    text = table({"layout first": [values] * 3, "other": [values | {"drag_arrived": 1.0}] * 2})
    assert "| other | 2 | 1.000 [1.000, 1.000] |" in text and "+0.500 [+0.500, +0.500]" in text


@pytest.mark.parametrize("model", ["sd15", "sd3"])
def test_the_rows(model):
    [row] = select([f"diffuhaul-{model}"])
    for shot in row.shots(3):
        caption = Caption.parse(shot.caption)
        assert caption.things[0].place == "left" and caption.things[0].texture != "plain" and caption.ground.texture == "plain"
        for arm in row.arms:
            if arm.graph is None:
                continue
            graph = arm.graph(shot)
            assert graph[SAVE]["inputs"]["images"] == ["both", 0] and graph["source"]["inputs"]["positive"] == ["positive", 0]
            assert "on the left" not in graph["plain"]["inputs"]["text"]
            if "DiffUHaul" in arm.name:
                drag = graph["method_1"]["inputs"]
                assert drag["dx"] == 64 and graph[SAMPLER]["inputs"]["latent_image"] == ["method_1", 1] and graph[SAMPLER]["inputs"]["positive"] == ["method_1", 2]
                assert (drag["positive"] == ["box", 0]) == ("GLIGEN" in arm.name)
                assert drag["caption"] in shot.caption and graph["source"]["inputs"]["model"] != ["method_1", 0]
    truth = render(random_scene(random.Random(1), Caption.parse(row.shots(1)[0].caption)), 1, 128)
    found = haul(Footage(row.shots(1)[0].caption, truth, None, ""))
    assert found["drag_arrived"] == 1 and found["drag_identity"] > 0.9 and DX == 0.5
