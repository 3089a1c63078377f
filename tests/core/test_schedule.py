"""Windows, block text and head text."""

import pytest
from attention_loom.core.call import Block
from attention_loom.core.errors import LoomError
from attention_loom.core.schedule import BlockSelection, Window


def linear(percent):  # a flow schedule: sigma falls from 1 to 0
    return 1.0 - percent


DIT = [Block("double", i, i, 6) for i in range(2)] + [Block("single", i, 2 + i, 6) for i in range(4)]
UNET = [Block("input", 2, s, 7, sub=s) for s in range(4)] + [Block("middle", 0, 4, 7)] + [Block("output", 0, 5 + s, 7, sub=s + 3) for s in range(2)]


@pytest.mark.parametrize(
    ("start", "end", "inside"),
    [(0, 1, [1.0, 0.75, 0.5, 0.25, 0.0]), (0, 0.5, [1.0, 0.75]), (0.5, 1, [0.5, 0.25, 0.0]), (0.25, 0.75, [0.75, 0.5]), (0.3, 0.3, []), (0.8, 0.2, [])],
)
def test_window_by_sigma(start, end, inside):
    levels = [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [s for s in levels if Window(start, end).contains(s, linear)] == inside


def test_windows_that_meet_share_no_step():
    for sigma in (1.0, 0.5, 0.4999, 0.0):
        assert Window(0, 0.5).contains(sigma, linear) != Window(0.5, 1).contains(sigma, linear)


def test_window_out_of_range():
    with pytest.raises(LoomError, match="start_percent 1.5"):
        Window(1.5, 1)


@pytest.mark.parametrize(
    ("text", "blocks", "chosen"),
    [
        ("", DIT, [0, 1, 2, 3, 4, 5]),
        ("all", DIT, [0, 1, 2, 3, 4, 5]),
        ("1-3", DIT, [1, 2, 3]),
        ("-1", DIT, [5]),
        ("-2--1", DIT, [4, 5]),
        ("d1", DIT, [1]),
        ("s1-2", DIT, [3, 4]),
        ("d0, s3", DIT, [0, 5]),
        ("d2.1-2", UNET, [1, 2]),
        ("d2", UNET, [0, 1, 2, 3]),
        ("m0 u0.4", UNET, [4, 6]),
        ("d2.2-9", UNET, [2, 3]),
    ],
)
def test_block_text(text, blocks, chosen):
    selection = BlockSelection.parse(text)
    assert [b.ordinal for b in blocks if b in selection] == chosen


@pytest.mark.parametrize("text", ["x5", "5..6", "7-3", "d2-d4", "b", "5-6.2"])
def test_block_text_refused(text):
    with pytest.raises(LoomError, match=r"block selection|backwards|mixes"):
        BlockSelection.parse(text)


def test_parts_that_select_nothing_are_named():
    assert BlockSelection.parse("1, 99, u3").unmatched(DIT) == ["99", "u3"]
