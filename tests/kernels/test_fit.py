"""The one knob: what a share of the attention becomes, and what is said where it cannot be had."""

import pytest
from attention_loom.kernels.patterns.base import Tokens
from attention_loom.kernels.patterns.fit import NAMES, Choice, fit

PICTURE = Tokens(64 * 64, (1, 64, 64))
WITH_REFERENCE = Tokens(512 + 2 * 64 * 64, (1, 64, 64), 512)
VIDEO = Tokens(21 * 30 * 52, (21, 30, 52))


@pytest.mark.parametrize(("name", "tokens"), [("sliding_tile", PICTURE), ("sliding_tile", VIDEO), ("radial", VIDEO)])
def test_a_reference_picture_does_not_use_up_the_share(name, tokens):
    """The tokens around the grid are read whatever the setting, so the setting must not shrink to nothing for them."""
    alone, note = fit(Choice(name, 0.5), tokens)
    assert not note
    assert fit(Choice(name, 0.5), Tokens(tokens.count * 2 + 77, tokens.grid, 77))[0] == alone


@pytest.mark.parametrize("name", [n for n in NAMES if n != "radial"])
def test_what_text_and_references_cost_is_said(name):
    _, note = fit(Choice(name, 0.3), WITH_REFERENCE)
    if name == "sparsed":  # so many have a budget of their own
        assert not note
    else:
        assert "78% of the pairs belong to text and reference tokens, which are always computed; the density 0.3 counts for the others" in note
    _, note = fit(Choice(name, 0.5), Tokens(PICTURE.count + 20, PICTURE.grid, 20))
    assert "text and reference" not in note


def test_a_circle_says_what_its_rim_costs():
    pattern, note = fit(Choice("clear", 0.2), PICTURE)
    counted = float(pattern.plan(PICTURE).density())
    assert counted > 0.4, "or this test proves nothing"
    assert note.startswith(f"clear computes {100 * counted:.0f}% of the pairs here, more than the density 0.2 asked for")
    large = Tokens(256 * 256, (1, 256, 256))
    assert fit(Choice("clear", 0.5, block=64), large)[1] == ""


@pytest.mark.parametrize("name", ["radial", "sliding_tile", "rettention"])
def test_a_floor_is_said(name):
    tokens = Tokens(3 * 8 * 8, (3, 8, 8))
    _, note = fit(Choice(name, 0.05, block=64), tokens)
    assert "at the least here, more than the density 0.05 asked for" in note
