"""The row of endless clips: arms are the paper's ablation, each with one part more, and the queue fits its scheduler."""

from attention_loom.toyworld.scoreboard.rows.ouroboros import ROWS


def test_each_arm_has_one_part_more():
    row = ROWS[0]
    (shot,) = row.shots(1)
    drawn = {arm.name: arm.graph(shot) for arm in row.arms if arm.graph is not None}
    assert shot.latent_frames == 52 and drawn["stock, one run"]["latent"]["inputs"]["length"] == 205
    fifo, tail, subject, full = (drawn[name] for name in ("FIFO", "coherent tail", "tail and subject", "tail, subject, guidance"))
    assert fifo["queue"]["inputs"]["tail"] == "fresh noise" and {**fifo, "queue": tail["queue"]} == tail
    assert full["method_1"]["inputs"] == {**subject["method_1"]["inputs"], "guidance": 1.0}
    for graph in (fifo, tail, subject, full):
        assert graph["queue"]["inputs"]["frames"] == 52 and graph["latent"]["inputs"]["length"] == 21
        assert graph["levels"]["inputs"]["steps"] == ["queue", 1] and graph["save"]["inputs"]["images"] == ["decode", 0]
    assert subject["method_1"]["inputs"]["subject"] in shot.caption


def test_the_arms_of_the_one_level_model_differ_in_their_files_alone():
    row = ROWS[1]
    (shot,) = row.shots(1)
    drawn = {arm.name: arm.graph(shot) for arm in row.arms if arm.graph is not None}
    for name in ("FIFO", "coherent tail"):
        own, other = drawn[name], drawn[f"{name}, one-level model"]
        assert own["unet"]["inputs"]["unet_name"] == "scenes_wan_forcing.safetensors" and other["unet"]["inputs"]["unet_name"] == "scenes_wan_t2v.safetensors"
        assert {**own, "unet": 0, "clip": 0} == {**other, "unet": 0, "clip": 0}
        assert own["queue"]["inputs"]["window"] == 9 and own["latent"]["inputs"]["length"] == 33
    assert {name for name, _ in row.models} >= {other["unet"]["inputs"]["unet_name"], other["clip"]["inputs"]["clip_name"], "scenes_wan_forcing.safetensors"}
