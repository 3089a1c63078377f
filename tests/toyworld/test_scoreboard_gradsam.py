"""Rows on Grad-SAM: the ground asked for is in the reference and in no prompt."""

import pytest
from attention_loom.toyworld.scenes import Caption
from attention_loom.toyworld.scenes.grammar import GROUNDS
from attention_loom.toyworld.scoreboard.graphs import SAMPLER
from attention_loom.toyworld.scoreboard.rows import select


@pytest.mark.parametrize("name", ["gradsam-sd15", "gradsam-sd3"])
def test_the_ground_is_told_by_the_reference_alone(name):
    [row] = select([name])
    for shot in row.shots(12):
        wanted = Caption.parse(shot.caption)
        for arm in row.arms:
            if arm.graph is None:
                continue
            graph = arm.graph(shot)
            told = Caption.parse(graph["positive"]["inputs"]["text"])
            assert told.things == wanted.things and told.ground.colour != wanted.ground.colour
            colour = graph["ground"]["inputs"]["color"]
            assert [colour >> 16 & 255, colour >> 8 & 255, colour & 255] == [round(255 * v) for v in GROUNDS[wanted.ground.colour]]
            starts = graph[SAMPLER]["inputs"]["latent_image"]
            assert starts == (["reference", 0] if "from the reference" in arm.name else ["latent", 0])
            if "Grad-SAM" in arm.name:
                inputs = graph["method_1"]["inputs"]
                assert inputs["reference"] == ["reference", 0] and inputs["prompt"] == str(told)
                assert inputs["subjects"] == f"{wanted.things[0].colour} {wanted.things[0].shape}"
