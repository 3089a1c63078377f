"""The truth scorer prefers what the caption says, and Find Guidance Heads takes it."""

import random

import pytest
import torch
from attention_loom.core.hunt.scorers import Shot, as_scorer
from attention_loom.toyworld.scenes import Caption, Ground, Thing, random_scene, render
from attention_loom.toyworld.truth_scorer import TruthScorer

RED, BLUE = Caption((Thing("red", "circle"),), Ground("grey")), Caption((Thing("blue", "square"),), Ground("grey"))


@pytest.fixture(scope="module")
def red():
    return render(random_scene(random.Random(4), RED), size=128)


def test_truth_is_worth_more_than_another_caption_and_than_nothing(red):
    scorer = as_scorer(TruthScorer())
    assert scorer.score(Shot(red, str(RED))) > 0.9
    assert scorer.score(Shot(red, str(RED))) > scorer.score(Shot(red, str(BLUE))) + 0.2
    assert scorer.score(Shot(torch.zeros_like(red), str(RED))) == 0.0
    assert as_scorer(TruthScorer("binding")).score(Shot(torch.zeros_like(red), str(RED))) == 0.0


def test_images_are_pictures_of_their_own(red):
    both = torch.cat([red, torch.zeros_like(red)])
    one = TruthScorer("presence")
    assert one(both, str(RED)) == 0.5
    assert as_scorer(one).name == "toy world's truth, presence"
    assert as_scorer(one).key != as_scorer(TruthScorer()).key
