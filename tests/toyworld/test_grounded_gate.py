"""Measures of a grounded picture on rendered truth, and on a picture whose things are elsewhere."""

import random
from dataclasses import replace

import pytest
import torch
from attention_loom.toyworld.grounded_gate import judge
from attention_loom.toyworld.scenes import Caption, random_scene, render


@pytest.mark.parametrize("words", ["a red circle on a grey background", "a red circle and a blue square on a green background"])
def test_truth_is_in_its_boxes_and_nothing_else_is(words):
    scene = random_scene(random.Random(3), Caption.parse(words), moving=False)
    frame = render(scene, 1, 128)
    found = judge(frame, scene)
    assert found["seen"] == found["inside"] == 1.0
    assert found["iou"] > 0.8
    away = replace(scene, bodies=tuple(replace(body, x=(body.x + 0.5) % 1.0) for body in scene.bodies))
    elsewhere = judge(frame, away)
    assert elsewhere["seen"] == 1.0
    assert elsewhere["inside"] == 0.0
    assert elsewhere["iou"] < 0.3
    assert judge(torch.full_like(frame, 0.2), scene) == {"seen": 0.0, "inside": 0.0, "iou": 0.0}
