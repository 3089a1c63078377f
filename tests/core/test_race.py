"""The contest of sparse against dense, on a clock of our own."""

import pytest
from attention_loom.core.race import Race


class Clock:
    """Every kind of work takes as long as it says."""

    def __init__(self, **took):
        self.took, self.timed = took, []

    def __call__(self, work):
        result = work()
        self.timed.append(result)
        return result, self.took[result]


def race(sparse, dense, notes=("sparse",) * 6):
    clock = Clock(sparse=sparse, dense=dense)
    contest, ran = Race(clock), []

    def work(note):
        def run():
            contest.note = note
            ran.append("sparse")
            return "sparse"

        return run

    def stock():
        ran.append("dense")
        return "dense"

    results = [contest.run(work(note), stock) for note in notes]
    assert results == ["sparse"] * len(notes), "the user always gets the sparse result of a sparse call"
    return contest, ran, clock


@pytest.mark.parametrize(("sparse", "dense", "lost"), [(5.0, 10.0, False), (9.8, 10.0, True), (9.6, 10.0, False), (12.0, 10.0, True)])
def test_sparse_must_be_worth_it(sparse, dense, lost):
    contest, _, clock = race(sparse, dense)
    assert contest.lost is lost
    assert clock.timed == ["sparse", "dense"], "one timing of each"
    assert contest.verdict == f"measured: sparse {sparse:.2f} ms, dense {dense:.2f} ms a call"


def test_it_is_measured_once_after_warming_up():
    _, ran, _ = race(5.0, 10.0)
    assert ran == ["sparse"] * 3 + ["dense", "dense"] + ["sparse"] * 3


def test_calls_that_search_are_not_timed():
    contest, ran, _ = race(5.0, 10.0, notes=("dense: search",) * 4 + ("sparse", "sparse", "dense: search", "sparse"))
    assert contest.sparse_ms == 5.0
    assert ran.count("dense") == 2
    undecided, ran, _ = race(5.0, 10.0, notes=("dense: search",) * 9)
    assert undecided.sparse_ms is None
    assert not undecided.lost
    assert undecided.verdict == "not measured"
    assert "dense" not in ran


def test_a_call_that_says_nothing_is_not_taken_for_sparse():
    """Another backend may run the call dense in place of the pattern; then nobody says what it was."""
    contest = Race(Clock(sparse=5.0, dense=10.0))
    contest.note = "sparse"
    for _ in range(5):
        contest.run(lambda: "sparse", lambda: "dense")
    assert contest.runs == 0
    assert contest.sparse_ms is None
