"""Head selections: what each form means, what is refused and with which words."""

import json

import pytest
from attention_loom.core.call import Block
from attention_loom.core.errors import LoomError
from attention_loom.core.heads import HeadSet

FLUX = [Block("double", i, i, 5) for i in range(2)] + [Block("single", i, i + 2, 5) for i in range(3)]
UNET = [
    Block("input", 1, 0, 7), Block("input", 4, 1, 7, 0), Block("input", 4, 2, 7, 1), Block("middle", 0, 3, 7),
    Block("output", 0, 4, 7, 0), Block("output", 0, 5, 7, 1), Block("output", 3, 6, 7),
]  # fmt: skip
HEADS = 4


def chosen(text, blocks=FLUX, default=0.5):
    """{(ordinal, head): amount} of all heads that are chosen."""
    found = HeadSet.parse(text)
    return {(b.ordinal, h): u for b in blocks for h, u in enumerate(found.amounts(b, HEADS, default)) if u}


def every(*ordinals, amount=0.5):
    return {(n, h): amount for n in ordinals for h in range(HEADS)}


@pytest.mark.parametrize(
    ("text", "blocks", "want"),
    [
        ("", FLUX, {}),
        ("all", FLUX, every(0, 1, 2, 3, 4)),
        ("1-2", FLUX, every(1, 2)),
        ("-1", FLUX, every(4)),
        ("1:0,3", FLUX, {(1, 0): 0.5, (1, 3): 0.5}),
        ("1:0, 2-3@0.25", FLUX, {(1, 0): 0.25, (1, 2): 0.25, (1, 3): 0.25}),
        ("1:0,3; 2", FLUX, {(1, 0): 0.5, (1, 3): 0.5} | every(2)),
        ("1:0\n2", FLUX, {(1, 0): 0.5} | every(2)),
        ("1:0, s0", FLUX, {(1, 0): 0.5} | every(2)),
        ("1:all@1", FLUX, every(1, amount=1.0)),
        ("L3H1, L4H0", FLUX, {(3, 1): 0.5, (4, 0): 0.5}),
        ("l3h1@0.3 L4H0-1", FLUX, {(3, 1): 0.3, (4, 0): 0.5, (4, 1): 0.5}),
        ("L1-2, L4", FLUX, every(1, 2, 4)),
        ("d1 s2", FLUX, every(1, 4)),
        ("s0-1:2", FLUX, {(2, 2): 0.5, (3, 2): 0.5}),
        ("d1H3@1", FLUX, {(1, 3): 1.0}),
        ("1, L1H2@0.9, 1:3@0", FLUX, {(1, 0): 0.5, (1, 1): 0.5, (1, 2): 0.9}),
        ("m0, u0.1", UNET, every(3, 5)),
        ("d0-d4", UNET, every(0, 1, 2)),
        ("d4.0-1:3, u0.1H2", UNET, {(1, 3): 0.5, (2, 3): 0.5, (5, 2): 0.5}),
        ("[[3, 1], [4, 0, 0.25], \"L0H2\"]", FLUX, {(3, 1): 0.5, (4, 0): 0.25, (0, 2): 0.5}),
        ('{"heads": [[3, 1]]}', FLUX, {(3, 1): 0.5}),
    ],
)  # fmt: skip
def test_what_a_text_chooses(text, blocks, want):
    assert chosen(text, blocks) == want


def test_naming_all_heads_one_by_one_is_the_whole_layer_in_any_order():
    singly = [f"L2H{h}" for h in range(HEADS)]
    assert chosen(", ".join(singly)) == chosen(", ".join(reversed(singly))) == chosen("2") == chosen("s0:0-3")


def test_sets_add_up_and_print_back():
    both = HeadSet.parse("1:0,3") + HeadSet.parse("L2H1@0.2")
    assert str(both) == "1:0,3; L2H1@0.2"
    assert HeadSet.parse(str(both)).items == both.items
    assert str(HeadSet.of([(3, 1), (4, 0)])) == "L3H1; L4H0"


def test_a_file_remembers_its_model():
    text = HeadSet.parse("L3H1@0.3, 1:0,2").file("FLUX", 5, HEADS, scores=[1.5])
    assert json.loads(text)["scores"] == [1.5]
    found = HeadSet.parse(text)
    assert chosen(text) == chosen("L3H1@0.3, 1:0,2")
    found.check("FLUX", FLUX, lambda b: HEADS)
    for family, blocks, heads in (("SD3", FLUX, HEADS), ("FLUX", FLUX[:4], HEADS), ("FLUX", FLUX, HEADS + 1)):
        with pytest.raises(LoomError, match="found on FLUX with 5 blocks of 4 heads"):
            found.check(family, blocks, lambda b, n=heads: n)


def test_idle():
    assert HeadSet().idle(1.0)
    assert HeadSet.parse("1:0").idle(0.0)
    assert HeadSet.parse("1:0@0, 2@0").idle(1.0)
    assert not HeadSet.parse("1:0@0.1").idle(0.0)


@pytest.mark.parametrize("text", ["x5", "9:", "9:a", "9:3-1", "7-3", ":2", "L9H", "L9H3@", "9@x", "d2-u4", "L9H3H4", "5..6", "9:1:2", '[["a", 3]]', "[[1.5, 3]]", "[[1]]"])
def test_text_that_cannot_be_read_is_shown(text):
    with pytest.raises(LoomError, match=r"is not a selection of heads|is not a head"):
        HeadSet.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("L9H3@1.5", "'L9H3@1.5' gives the amount 1.5; it lies between 0"),
        ("L9H3@nan", "gives the amount nan"),
        ("[[3, 1]", "look like JSON but cannot be read"),
        ('{"layers": []}', "holds no list 'heads'"),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(LoomError, match=words):
        HeadSet.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5", "'5' names no block of this model: FLUX has 5 blocks, 0 to 4 in order .double 0 to 1, single 0 to 2."),
        ("3-7", "'3-7' names no block"),
        ("u0", "'u0' names no block"),
        ("L2H4", "'L2H4' names head 4, and single 0 .block 2 in order. has heads 0 to 3"),
        ("1:0,9", "'1:0,9' names head 9"),
    ],
)
def test_blocks_and_heads_the_model_lacks_are_named(text, words):
    with pytest.raises(LoomError, match=words):
        HeadSet.parse(text).check("FLUX", FLUX, lambda b: HEADS)
