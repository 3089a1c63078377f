"""The sparse node in a real ComfyUI process, driven through its API on the toy world's Wan model."""

import re

import pytest
import torch
from attention_loom.kernels.patterns.fit import NAMES
from attention_loom.tools.headless import HostError

pytestmark = pytest.mark.server
NATIVE, LONG = 21, 93  # pixel frames: 6 and 24 latent frames, 96 and 384 tokens
SPARSE = {"pattern": "draft", "density": 0.3, "start_percent": 0.2, "dense_blocks": "0", "min_tokens": 0, "block_size": "4"}


def shares(report):
    return {label: float(share) for label, share in re.findall(r"- pattern (\S+): .*?([\d.]+)% of the pairs", report)}


@pytest.mark.parametrize("pattern", NAMES)
def test_every_pattern_runs_and_reports_its_share(host, graph, pattern):
    ours, report = graph(NATIVE, steps=10).add("LoomSparseAttention", **SPARSE | {"pattern": pattern}).run(host, report=True)
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, graph(NATIVE, steps=10).known_run(host))
    ((label, share),) = shares(report).items()
    assert label.startswith(pattern)
    assert 5 < share < 80
    assert "12 x" not in report or "changed by Sparse Attention (blocks)" in report


def test_density_one_is_bit_identical(host, graph):
    assert torch.equal(graph(NATIVE).known_run(host), graph(NATIVE).add("LoomSparseAttention", **SPARSE | {"density": 1.0}).run(host))


def test_too_few_tokens_change_nothing_and_say_so(host, graph):
    ours, report = graph(NATIVE).add("LoomSparseAttention", **{k: v for k, v in SPARSE.items() if k != "min_tokens"}).run(host, report=True)
    assert torch.equal(graph(NATIVE).known_run(host), ours)
    assert "WARNING: Sparse Attention changed nothing" in report
    assert "96 tokens are fewer than min_tokens 8192" in report


def test_the_start_and_the_first_block_stay_dense(host, graph):
    def calls(**changes):
        _, report = graph(NATIVE, steps=5).add("LoomSparseAttention", **SPARSE | changes).run(host, report=True)
        return int(re.search(r"- Sparse Attention: (\d+) calls", report)[1])

    assert calls(start_percent=0.0, dense_blocks="") == 20
    assert calls(start_percent=0.0) == 15
    assert calls(start_percent=0.0, end_percent=0.5) + calls(start_percent=0.5) == 15


def test_it_chains_with_a_longer_video_in_one_pass(host, graph):
    decay = {"preset": "custom", "alpha": 0.6, "strength": 1.0, "train_frames": 6}
    one = graph(LONG).add("LoomSparseAttention", **SPARSE).add("LoomUltraViCo", **decay).run(host)
    other, report = graph(LONG).add("LoomUltraViCo", **decay).add("LoomSparseAttention", **SPARSE).run(host, report=True)
    assert torch.equal(one, other)
    assert "changed by Longer Video (UltraViCo), Sparse Attention (blocks, modulation)" in report


@pytest.mark.parametrize("pattern", ["adaspa", "rettention", "draft"])
def test_context_windows_remember_for_themselves(host, graph, pattern):
    settings = SPARSE | {"pattern": pattern, "start_percent": 0.0}

    def go():
        return graph(LONG, steps=6).in_windows(45).add("LoomSparseAttention", **settings).run(host, report=True)

    ours, report = go()
    stock = graph(LONG, steps=6).in_windows(45).run(host)
    again, _ = go()  # after another graph, or the host would hand out what it still has
    assert torch.isfinite(ours).all()
    assert torch.equal(ours, again)
    assert "grid 12 frames x 4 x 4" in report or "grid 13 frames x 4 x 4" in report  # later hosts put the frame before a window in front of it
    assert not torch.equal(ours, stock)


def test_a_foreign_override_keeps_the_dense_calls(host, graph, foreign_log):
    alone = graph(NATIVE).add("LoomSparseAttention", **SPARSE).run(host)
    foreign_log.write_text("")
    together, report = graph(NATIVE).add("LoomSparseAttention", **SPARSE).add("ForeignOverride").run(host, report=True)
    assert torch.equal(alone, together)
    assert foreign_log.read_text().count("call") > 0
    assert "through another pack's override" in report


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.0}, "density"),
        ({"density": 1.5}, "density"),
        ({"pattern": "dense"}, "pattern"),
        ({"dense_blocks": "first"}, "'first' is not a block selection"),
        ({"dense_blocks": "7"}, "dense_blocks '7' names no block of this model, which has 4"),
        ({"blocks": "x1"}, "'x1' is not a block selection"),
        ({"pattern": "sliding_tile", "window": "3 by 3"}, "window '3 by 3' was given; write frames x height x width"),
        ({"backend": "triton"}, "triton"),
        ({"pattern": "radial", "decay": 9.0}, "decay"),
    ],
)
def test_bad_input_gets_one_sentence(host, graph, settings, words):
    steps = []
    g = graph(NATIVE).add("LoomSparseAttention", **SPARSE | settings)
    with pytest.raises(HostError, match=re.escape(words)) as caught:
        host.run(g.prompt(), progress=lambda *a: steps.append(a))
    assert len(str(caught.value)) < 600


def test_a_pattern_without_meaning_is_refused_before_the_first_step(host, graph):
    steps = []
    g = graph(1).add("LoomSparseAttention", **SPARSE | {"pattern": "radial"})
    with pytest.raises(HostError, match="radial thins pairs of frames and this latent has 1 latent frame"):
        host.run(g.prompt(), progress=lambda *a: steps.append(a))
    assert steps == []
