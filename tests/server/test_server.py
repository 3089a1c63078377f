"""The nodes in a real ComfyUI process, driven through its API on the toy world's Wan model."""

import re
import threading
import time

import pytest
import torch
from attention_loom.tools.headless import HostError

pytestmark = pytest.mark.server

NATIVE, LONG = 21, 93  # pixel frames: 6 and 24 latent frames
OURS = [
    "LoomUltraViCo",
    "LoomRIFLEx",
    "LoomOuroboros",
    "LoomEndlessPrompts",
    "LoomEndlessSubject",
    "LoomDecodeEndless",
    "LoomSparseAttention",
    "LoomEntropyScale",
    "LoomSpaceTime",
    "LoomSoftPAG",
    "LoomHeadHunter",
    "LoomPictureScorer",
    "LoomModelScorer",
    "LoomLoadHeads",
    "LoomAStar",
    "LoomGradSAM",
    "LoomSubjectMask",
    "LoomIRDiffusion",
    "LoomSubjectBatch",
    "LoomReferencePictures",
    "LoomPlaceMasks",
    "LoomDiffUHaul",
    "LoomAttenCraftMasks",
    "LoomAttenCraftTrain",
    "LoomTrackEditor",
    "LoomDiTraj",
    "LoomSplitPrompt",
    "LoomInspector",
    "LoomInspectorPictures",
    "LoomReport",
]
ULTRAVICO = {"preset": "custom", "alpha": 0.6, "strength": 1.0, "train_frames": 6}
RIFLEX = {"preset": "custom", "strength": 1.0, "k": 4}


def test_all_nodes_are_there_and_explain_themselves(object_info):
    for name in OURS:
        node = object_info[name]
        assert node["category"].startswith("attention loom/")
        assert len(node["description"]) > 60
        assert "model" not in node["input"]["required"] or next(iter(node["input"]["required"])) == "model"
        for part in (node["input"].get("required", {}), node["input"].get("optional", {})):
            for key, spec in part.items():
                assert len(spec[1].get("tooltip", "")) > 20, f"{name}.{key} has no tooltip"
        assert all(node["output_tooltips"])


def test_help_pages_are_served(host):
    import urllib.request

    for name in OURS:
        with urllib.request.urlopen(f"{host.url}/extensions/attention-loom/docs/{name}/en.md") as page:
            assert page.read().startswith(b"# ")


def test_up_to_the_trained_length_nothing_changes(host, graph):
    stock = graph(NATIVE).known_run(host)
    ours, report = graph(NATIVE).add("LoomUltraViCo", **ULTRAVICO).run(host, report=True)
    assert torch.equal(stock, ours)
    assert "WARNING: Longer Video (UltraViCo) changed nothing" in report
    assert "6 latent frames are within the training length 6" in report


@pytest.mark.parametrize(
    ("node", "settings"),
    [
        ("LoomUltraViCo", ULTRAVICO | {"strength": 0.0}),
        ("LoomUltraViCo", ULTRAVICO | {"alpha": 1.0}),
        ("LoomUltraViCo", ULTRAVICO | {"start_percent": 0.5, "end_percent": 0.5}),
        ("LoomRIFLEx", RIFLEX | {"strength": 0.0}),
    ],
)
def test_off_is_bit_identical(host, graph, node, settings):
    assert torch.equal(graph(LONG).known_run(host), graph(LONG).add(node, **settings).run(host))


def test_ultravico_changes_every_self_attention_and_nothing_else(host, graph):
    stock = graph(LONG).known_run(host)
    ours, report = graph(LONG).add("LoomUltraViCo", **ULTRAVICO).run(host, report=True)
    assert not torch.equal(stock, ours)
    assert torch.isfinite(ours).all()
    # 4 blocks, 3 steps, cond and uncond in one batch: 12 self-attention calls and as many cross-attention calls
    assert "- Longer Video (UltraViCo): 12 calls" in report
    assert "12 x cross: stock" in report
    assert "backend chunked" in report


def test_riflex_runs_on_the_hosts_own_attention(host, graph):
    ours, report = graph(LONG).add("LoomRIFLEx", **RIFLEX).run(host, report=True)
    assert not torch.equal(graph(LONG).known_run(host), ours)
    assert "12 x self: changed by Longer Video (RIFLEx) (rotation), backend host" in report


def test_windows_and_blocks_limit_the_method(host, graph):
    def calls(**limits):
        _, report = graph(LONG, steps=4).add("LoomUltraViCo", **ULTRAVICO, **limits).run(host, report=True)
        return int(re.search(r"- Longer Video \(UltraViCo\): (\d+) calls", report)[1])

    assert calls(blocks="1-2") == 8
    early, late = calls(blocks="1-2", end_percent=0.3), calls(blocks="1-2", start_percent=0.3)
    assert early + late == 8
    assert min(early, late) > 0


def test_two_of_ours_chain_in_either_order(host, graph):
    one = graph(LONG).add("LoomUltraViCo", **ULTRAVICO).add("LoomRIFLEx", **RIFLEX).run(host)
    other, report = graph(LONG).add("LoomRIFLEx", **RIFLEX).add("LoomUltraViCo", **ULTRAVICO).run(host, report=True)
    assert torch.equal(one, other)
    assert "changed by Longer Video (RIFLEx), Longer Video (UltraViCo) (modulation, rotation)" in report


@pytest.mark.parametrize("first", [True, False])
def test_a_pack_that_overwrites_the_slot_still_runs_and_does_not_kill_us(host, graph, foreign_log, first):
    alone = graph(LONG).add("LoomUltraViCo", **ULTRAVICO).known_run(host)
    g = graph(LONG)
    if first:
        g.add("ForeignOverride")
    g.add("LoomUltraViCo", **ULTRAVICO)
    if not first:
        g.add("ForeignOverride")
    foreign_log.write_text("")
    together, report = g.run(host, report=True)
    assert torch.equal(alone, together)
    assert "- Longer Video (UltraViCo): 12 calls" in report
    assert foreign_log.read_text().count("call") == 12, "the cross-attention calls we leave go through the foreign override"
    assert "through another pack's override" in report


def test_a_foreign_override_serves_as_backend(host, graph, foreign_log):
    foreign_log.write_text("")
    alone = graph(LONG).add("LoomRIFLEx", **RIFLEX).run(host)
    assert foreign_log.read_text() == ""
    together = graph(LONG).add("LoomRIFLEx", **RIFLEX).add("ForeignOverride").run(host)
    assert torch.equal(alone, together)
    assert foreign_log.read_text().count("call") == 24


def test_it_rests_in_context_windows_no_longer_than_the_trained_length(host, graph):
    alone = graph(LONG).in_windows(NATIVE).run(host)
    ours, report = graph(LONG).in_windows(NATIVE).add("LoomUltraViCo", **ULTRAVICO).run(host, report=True)
    assert torch.equal(alone, ours)
    assert "6 latent frames are within the training length 6" in report


def test_it_works_inside_longer_context_windows(host, graph):
    alone = graph(LONG).in_windows(45).run(host)
    ours, report = graph(LONG).in_windows(45).add("LoomUltraViCo", **ULTRAVICO).run(host, report=True)
    assert not torch.equal(alone, ours)
    assert "grid 12 frames x 4 x 4" in report or "grid 13 frames x 4 x 4" in report  # later hosts put the frame before a window in front of it


def test_second_run_equals_the_first(host, graph):
    def go(seed):
        return graph(LONG, seed=seed).add("LoomUltraViCo", **ULTRAVICO).run(host)

    first, other, again = go(1), go(2), go(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "custom", "train_frames": 0}, "preset custom needs train_frames"),
        ({"train_frames": 1}, "train_frames 1 was given"),
        ({"repetition": "custom period", "period": 30.0, "beta": 0.9}, "beta 0.9 is above alpha 0.6"),
        ({"repetition": "custom period", "period": 5.0, "gamma": 4, "beta": 0.5}, "inside the window of 3 frames"),
        ({"start_percent": 2.0}, "start_percent"),
        ({"alpha": 1.5}, "alpha"),
        ({"blocks": "nonsense"}, "'nonsense' is not a block selection"),
        ({"granularity": "pixel"}, "granularity"),
        ({"backend": "triton"}, "triton"),
        ({"backend": "sdpa"}, "sdpa"),
    ],
)
def test_bad_input_gets_one_sentence(host, graph, settings, words):
    with pytest.raises(HostError, match=words) as caught:
        graph(LONG).add("LoomUltraViCo", **ULTRAVICO | settings).run(host)
    assert len(str(caught.value)) < 600


def test_a_picture_is_refused_before_the_first_step(host, graph):
    steps = []
    g = graph(1).add("LoomUltraViCo", **ULTRAVICO)
    with pytest.raises(HostError, match="was given an image latent"):
        host.run(g.prompt(), progress=lambda *a: steps.append(a))
    assert steps == []


def test_riflex_refuses_what_it_cannot_know(host, graph):
    with pytest.raises(HostError, match="no frequency was chosen"):
        graph(LONG).add("LoomRIFLEx", preset="custom", strength=1.0).run(host)
    with pytest.raises(HostError, match="k is 1 to 22"):
        graph(LONG).add("LoomRIFLEx", **RIFLEX | {"k": 40}).run(host)


def test_a_report_without_a_method_says_so(host, graph):
    with pytest.raises(HostError, match="carries no Attention Loom method"):
        graph(NATIVE).run(host, report=True)


def test_the_model_is_left_as_it_was_after_errors_and_interrupts(host, graph):
    before = graph(LONG, seed=4).run(host)
    with pytest.raises(HostError, match="image latent"):
        graph(1, seed=5).add("LoomUltraViCo", **ULTRAVICO).run(host)

    def stop():
        time.sleep(1.5)
        host.interrupt()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(HostError, match="interrupted"):
        graph(LONG, seed=6, steps=400).add("LoomUltraViCo", **ULTRAVICO).run(host)
    stopper.join()
    assert torch.equal(before, graph(LONG, seed=4).run(host))
