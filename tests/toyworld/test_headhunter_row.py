"""The row of searched heads: as many by lot, never the same set for all, and whole layers."""

from attention_loom.core.heads import HeadSet
from attention_loom.toyworld.scoreboard.rows import headhunter

FILE = {"heads": ["L2H0", "L1H1", "L0H0"], "prompts": ["a", "b"]}


def test_arms_cost_the_same_and_differ_in_the_heads_alone():
    row = headhunter.row(FILE)
    shots = row.shots(6)
    graphs = {arm.name: [arm.graph(shot) for shot in shots] for arm in row.arms if arm.graph is not None}
    used = {name: [graph["method_1"]["inputs"]["heads"] for graph in drawn] for name, drawn in graphs.items() if name != "CFG 3"}
    assert used["heads found"] == ["L2H0, L1H1, L0H0"] * 6
    assert [used[f"layer {layer}"][0] for layer in range(3)] == ["0", "1", "2"]
    lots = used["heads by lot"]
    assert len(set(lots)) > 3 and all(len(set(lot.split(", "))) == 3 for lot in lots)
    assert used["heads by lot"] == [row.alternatives[0].graph(shot)["method_1"]["inputs"]["heads"] for shot in shots], "the lot is that of the prompt"
    for lot in lots:
        HeadSet.parse(lot)
    for drawn in graphs.values():
        for graph in drawn:
            inputs = dict(graph.get("method_1", {}).get("inputs", {}))
            inputs.pop("heads", None)
            inputs.pop("model", None)
            assert not inputs or inputs == {"preset": "auto", "scale": 3.0, "u": 0.5}
    assert "2 other prompts" in row.notes and "L2H0, L1H1, L0H0" in row.notes


def test_without_a_search_there_is_no_row(monkeypatch, tmp_path):
    monkeypatch.setattr(headhunter, "FOUND", tmp_path / "none.json")
    assert headhunter.found() is None
