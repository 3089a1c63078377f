"""Rows on A-STAR: arms differ in the loss and in nothing else, and name the objects as the caption does."""

import pytest
from attention_loom.toyworld.scenes import Caption
from attention_loom.toyworld.scoreboard.graphs import SAMPLER, base
from attention_loom.toyworld.scoreboard.rows import select


@pytest.mark.parametrize("name", ["astar-sd15-two", "astar-sd3-three"])
def test_arms_differ_in_the_loss_alone(name):
    [row] = select([name])
    shot = row.shots(1)[0]
    drawn = {arm.name: arm.graph(shot) for arm in row.arms if arm.graph}
    assert drawn["stock"] == base(shot)
    assert drawn["2.5x the steps"][SAMPLER]["inputs"]["steps"] == round(2.5 * shot.steps)
    things = Caption.parse(shot.caption).things
    told = {arm: graph["method_1"]["inputs"] for arm, graph in drawn.items() if "method_1" in graph}
    assert {arm: inputs["loss"] for arm, inputs in told.items()} == {
        "Attend-and-Excite": "attend_excite",
        "segregation alone": "seg only",
        "retention alone": "ret only",
        "A-STAR": "a_star",
    }
    for inputs in told.values():
        assert inputs["concepts"].splitlines() == [f"{thing.colour} {thing.shape}" for thing in things]
        assert inputs["prompt"] == shot.caption and inputs["positive"] == ["positive", 0]
    assert told["A-STAR"].get("end_percent") is None and told["Attend-and-Excite"]["end_percent"] == 0.5
