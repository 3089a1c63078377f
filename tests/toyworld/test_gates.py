"""Gate arithmetic: rendered truth passes every row, each corruption fails the rows it should, and nothing drawn is not a pass."""

import json
import math
import random

import numpy
import pytest
import torch
from attention_loom.toyworld import forcing, gate_sheets, gates, held_out, host, latent
from attention_loom.toyworld.bundles import BUNDLES
from attention_loom.toyworld.scenes import Caption, random_scene, render
from attention_loom.toyworld.scenes.grammar import MOTIONS
from attention_loom.toyworld.statistics import share_interval


def samples(name, objects=1, change=lambda frames: frames, count=12):
    bundle = BUNDLES[name]
    return [gates.examine(change(render(scene, size=bundle.size)), scene.caption) for scene in held_out.scenes(bundle, count, objects, "test")]


def failed(found, decibels=(35.0,)):
    return {name for name, row in gates.gate(found, decibels).items() if not row["passed"]}


@pytest.mark.parametrize("name", ["sd3", "wan_t2v"])
def test_rendered_truth_passes(name):
    rows = gates.gate(samples(name), [35.0, 36.0])
    assert set(rows) == {"colour", "shape", "round_trip"} | ({"direction", "motion"} if name == "wan_t2v" else {"placement"})
    assert all(row["passed"] for row in rows.values())
    assert rows["round_trip"]["n"] == 2 and rows["colour"]["high"] == 1.0 and rows["colour"]["low"] < 0.9


@pytest.mark.parametrize(
    ("name", "change", "rows"),
    [
        ("sd3", lambda frames: frames[..., [1, 2, 0]], {"colour"}),
        ("sd3", lambda frames: frames.transpose(1, 2), {"placement"}),
        ("sd3", lambda frames: frames * 0, {"colour", "shape", "placement"}),
        ("wan_t2v", lambda frames: frames.flip(0), {"direction", "motion"}),
        ("wan_t2v", lambda frames: frames * 0, {"colour", "shape", "direction", "motion"}),
        ("wan_t2v", lambda frames: torch.cat([frames[:11], frames[11:] * 0]), {"colour", "shape", "direction", "motion"}),
    ],
)
def test_corrupted_truth_fails(name, change, rows):
    assert rows <= failed(samples(name, change=change))


def test_a_blurred_round_trip_fails():
    assert failed(samples("sd3", count=2), [29.9]) == {"round_trip"}


def test_dropped_and_misnamed_objects_are_told_apart():
    caption = Caption.parse("a red circle and a white square on a grey background")
    scene = random_scene(random.Random(0), caption)
    whole = render(scene, size=128)
    other = Caption.parse("a red square and a white circle on a grey background")
    only = Caption.parse("a red circle on a grey background")
    cases = [gates.examine(whole, caption), gates.examine(whole, other), gates.examine(render(random_scene(random.Random(0), only), size=128), caption)]
    found = [gates.failures([case]) for case in cases]
    assert [[round(row[name]["mean"]) for name in ("dropped", "misnamed", "either")] for row in found] == [[0, 0, 0], [0, 1, 1], [1, 0, 1]]


def test_half_seen_things_count_half():
    judged = gates.judged(gates.examine(torch.zeros(1, 64, 64, 3), Caption.parse("a red circle on the left on a grey background")))
    assert judged["colour"] == judged["placement"] == 0.0 and math.isnan(judged["motion"])
    half = samples("wan_t2v", change=lambda frames: torch.cat([frames[:16], frames[16:17] * 0 + 0.26, frames[17:] * 0 + 0.26]), count=2)
    assert all(0.4 < gates.judged(sample)["colour"] < 0.6 for sample in half)


def test_held_out_scenes_are_new_repeatable_and_of_one_kind():
    bundle = BUNDLES["wan_t2v"]
    first = held_out.scenes(bundle, 10, 1, "gate")
    assert first == held_out.scenes(bundle, 10, 1, "gate") and first[:4] == held_out.scenes(bundle, 4, 1, "gate")
    assert [scene.caption.things[0].motion for scene in first] == list(MOTIONS)[:10]
    assert not {str(s.caption) for s in first} & {str(s.caption) for s in held_out.scenes(bundle, 10, 1, "settings")}
    barred = frozenset(str(scene.caption) for scene in first)
    assert not barred & {str(scene.caption) for scene in held_out.scenes(bundle, 10, 1, "gate", barred)}
    pictures = held_out.scenes(BUNDLES["sd15"], 6, 3, "gate")
    assert all(len(s.caption.things) == 3 and bool(s.caption.things[0].place) == (i % 2 == 0) for i, s in enumerate(pictures))


def test_training_captions_are_those_of_the_pool(tmp_path, monkeypatch):
    from attention_loom.toyworld.training import pools, sd3

    monkeypatch.setattr(held_out, "KEPT", tmp_path)
    held_out.training_captions.cache_clear()
    drawn = held_out.training_captions("sd3", 7, 8)
    assert drawn == frozenset(pools.make(8, 7 + held_out.POOL_SEED, "t5", False, sd3.MIX, progress=lambda _: None).captions)
    held_out.training_captions.cache_clear()
    assert held_out.training_captions("sd3", 7, 8) == drawn  # from disk
    held_out.training_captions.cache_clear()


def test_pyramid_levels_walk_down_one_after_the_other():
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.0])
    levels = forcing.pyramid_levels(sigmas, 3, 2)
    assert levels.shape == (8, 3) and bool((levels[0] == 1).all()) and bool((levels[-1] == 0).all())
    assert bool((levels.diff(dim=0) <= 0).all()) and bool((levels.diff(dim=1) >= 0).all())
    assert levels[2].tolist() == [0.5, 1.0, 1.0]
    assert torch.equal(forcing.pyramid_levels(sigmas, 3, 0), sigmas[:, None].expand(-1, 3))


class FakeClip:
    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens):
        return torch.zeros(1, 1, 1)


@pytest.mark.host
@pytest.mark.parametrize("neighbours", [0.0, 1.0])
def test_level_errors_see_what_neighbours_cost(monkeypatch, neighbours):
    """A model whose error is its own level, plus what the spread of its neighbours' levels adds."""
    host.load_host()
    import comfy.model_management

    class Patcher:
        load_device = torch.device("cpu")

    monkeypatch.setattr(forcing, "load", lambda bundle, folder: (Patcher(), FakeClip()))
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda models: None)
    shown = held_out.scenes(BUNDLES["wan_forcing"], 2, 1, "test")
    clean = torch.stack([latent.encode(render(scene, size=64)) for scene in shown])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def velocity(model, x, levels, context):
        wrong = levels + neighbours * levels.std(1, keepdim=True)
        return noise - clean + wrong[:, None, :, None, None]

    monkeypatch.setattr(forcing, "velocity", velocity)
    errors = forcing.level_errors(BUNDLES["wan_forcing"], shown)
    for ratio in errors.values():
        assert ratio.shape == (2,)
        assert bool((ratio > 1.3).all()) if neighbours else torch.allclose(ratio, torch.ones(2), atol=1e-4)


def test_shares_near_one_have_a_width():
    assert share_interval(numpy.ones(64)) == pytest.approx((1.0, 0.9434, 1.0), abs=1e-3)
    mean, low, high = share_interval(numpy.array([1.0] * 8 + [0.0] * 8))
    assert mean == 0.5 and high - 0.5 == pytest.approx(0.5 - low)
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        share_interval(numpy.array([2.0]))


@pytest.mark.parametrize("name", ["sd3", "wan_t2v"])
def test_sheets_are_written(tmp_path, name):
    bundle = BUNDLES[name]
    drawn = []
    for scene in held_out.scenes(bundle, 2, 2, "test"):
        frames = render(scene, size=bundle.size) * 0
        drawn.append(gate_sheets.Drawn("two objects", str(scene.caption), frames, gates.examine(frames, scene.caption).values))
    gate_sheets.write(bundle.moving, drawn, "title", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000 and "dropped" in drawn[0].faults


def test_a_table_says_value_bar_and_passed():
    result = {"gate": gates.gate(samples("sd3", count=2), [35.0]), "passed": True}
    text = gates.table("sd3", result)
    assert "| round trip | ≥ 30.0 | 35.0 |" in text and text.count("| yes |") == 4


def test_results_are_recorded():
    path = host.RESULTS / "scenes_gates.json"
    if not path.is_file():
        pytest.skip("results/scenes_gates.json is written when the second world's checkpoints are there")
    for name, result in json.loads(path.read_text()).items():
        assert {"colour", "shape", "round_trip"} <= set(result["gate"]) and result["cells"]["two objects"]["failures"], name
