"""Counting, closing and drawing a run."""

import pytest
import torch
from attention_loom.core.report import Entry, Record, Run
from attention_loom.core.report_picture import draw

from .test_weave import a_call


def test_a_run_is_counted_closed_and_freed():
    record = Record()
    run = record.begin("Wan", ("A", "B"), "cpu")
    run.step(1.0)
    run.step(0.5)
    run.state["bank"] = object()
    for sigma in (1.0, 0.5):
        run.count(Entry("self", True, "chunked", ("A",), ("modulation",)), a_call(sigma=sigma))
        run.count(Entry("cross", False, "host"), a_call(sigma=sigma, kind="cross"))
    assert run.timed(lambda: 7) == 7
    record.end()
    assert record.current is None
    assert record.last is run
    assert run.state == {}
    assert run.touched == {"A": 2, "B": 0}
    text = run.text()
    assert "2 noise levels, 4 attention calls, 2 changed" in text
    assert "WARNING: B changed nothing" in text
    assert run.as_dict()["calls"][1]["count"] == 2


def test_reasons_stand_beside_the_warning():
    record = Record()
    run = record.begin("Wan", ("A",), "cpu")
    run.count(Entry("self", False, "host", reason="A: 6 latent frames are within the training length 21"), a_call())
    record.end()
    assert "A changed nothing; A: 6 latent frames are within the training length 21" in run.text()


def test_a_run_that_was_never_closed_counts_as_failed():
    record = Record()
    first = record.begin("Wan", ("A",), "cpu")
    record.begin("Wan", ("A",), "cpu")
    assert first.failed
    assert len(record.runs) == 2


def test_the_picture_shows_every_outcome():
    record = Record()
    run = record.begin("Wan", ("A", "B"), "cpu")
    for sigma in (1.0, 0.5):
        run.step(sigma)
        run.count(Entry("self", True, "chunked", ("A", "B")), a_call(sigma=sigma))
        run.count(Entry("cross", False, "host"), a_call(sigma=sigma, kind="cross"))
    record.end()
    picture = draw(run)
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert (214, 218, 226) in colours, "stock"
    assert len([c for c in colours if max(c) - min(c) > 60]) >= 1, "a method's own colour"


def test_a_patterns_numbers_are_means_over_its_calls():
    run = Run("Wan", ("Sparse Attention",), "cpu")
    run.sparse("radial_b128", "sparse", [torch.tensor(0.25)])
    run.sparse("radial_b128", "sparse", [torch.tensor(0.35)])
    run.sparse("adaspa_b128", "dense: search", [], {"recall": torch.tensor(0.7)})
    run.sparse("adaspa_b128", "sparse", [torch.tensor(0.2)])
    run.close(False)
    assert run.density == {"radial_b128": pytest.approx(0.3), "adaspa_b128": pytest.approx(0.6)}, "a dense call counts whole"
    assert "- pattern radial_b128: 2 sparse; 30.0% of the pairs computed on average\n" in run.text()
    assert "adaspa_b128: 1 dense: search, 1 sparse; 60.0% of the pairs computed on average; the blocks it found held 70% of the attention, which is little" in run.text()
    assert run.as_dict()["patterns"]["adaspa_b128"]["calls"] == {"dense: search": 1, "sparse": 1}
