"""The study of AttenCraft: its scenes, its overlap, its tables."""

import json

import torch
from attention_loom.toyworld import attencraft_study as study
from attention_loom.toyworld.host import RESULTS


def test_scenes_hold_two_things_of_two_colours_and_stay_the_same():
    first, again = study.scenes(4), study.scenes(6)
    assert [str(s.caption) for s in first] == [str(s.caption) for s in again][:4]
    assert all(len({t.colour for t in s.caption.things}) == len(s.caption.things) == 2 for s in first)
    assert all(len({t.shape for t in s.caption.things}) == 2 for s in study.scenes(4, shapes_differ=True))
    assert study.latent_of(first[0])["samples"].shape == (1, 16, 16, 16)


def test_overlap():
    a, b = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    a[:2], b[1:3] = True, True
    assert study.iou(a, b) == 1 / 3 and study.iou(a, a) == 1 and study.iou(a & False, b & False) == 0


def test_tables_say_what_the_numbers_are():
    rows = {arm: {"iou": [0.5 + 0.1 * i, 0.6 + 0.1 * i], "refused": [i, 0]} for i, arm in enumerate((study.RIVAL, study.OURS))}
    table = study.mask_table({"models": {"sd15": rows}})
    assert "| AttenCraft, affinity 1 | 0.650 [0.600, 0.700] | +0.100 [+0.100, +0.100] | 1 |" in table
    one = {k: [1.0, 0.0] for k in study.TITLES}
    text = study.training_table({"arms": {arm: [one, one] for arm in study.TRAINING_ARMS}, "steps": 5, "rate": 0.1, "left_out": []})
    assert text.count("0.50 [0.50, 0.50]") == len(study.TRAINING_ARMS) * len(study.TITLES) and "2 scenes, 5 steps" in text


def test_the_committed_table_is_that_of_the_committed_numbers():
    data = json.loads((RESULTS / "attencraft_masks.json").read_text())
    assert (RESULTS / "attencraft_masks.md").read_text() == study.mask_table(data)
    assert all(len(row["iou"]) == 32 for rows in data["models"].values() for row in rows.values())
