"""The node's inputs as a method: presets, what is used when several heads are given, and sentences for what does not fit."""

import pytest
import tiny_models
from attention_loom.core.attach import methods_of
from attention_loom.core.errors import LoomError
from attention_loom.core.families.base import number

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


@pytest.fixture
def node():
    from attention_loom.nodes import softpag

    return softpag


def test_auto_is_the_papers_share_of_the_depth_or_the_middle_of_a_unet(node):
    assert [node.start_point(number({"double": n})) for n in (24, 57, 30, 1)] == ["7-10", "16-26", "8-13", "0-0"]
    assert str(node.configure(tiny_models.tiny("sd15").patcher).heads) == "m0"
    assert str(node.configure(tiny_models.tiny("flux").patcher).heads) == "0-1"


def test_given_heads_replace_auto_and_add_up(node):
    model = tiny_models.tiny("flux").patcher
    assert str(node.configure(model, heads="L2H1").heads) == "L2H1"
    assert str(node.configure(model, found_heads="L3H1, L4H0").heads) == "L3H1; L4H0"
    assert str(node.configure(model, heads="1", found_heads="L2H1").heads) == "1; L2H1"


def test_a_preset_is_for_its_model_and_adds_to_given_heads(node, monkeypatch):
    model, name = tiny_models.tiny("flux").patcher, "FLUX: vintage film"
    with pytest.raises(LoomError, match=r"preset 'FLUX: vintage film' names heads of FLUX.1 dev, and this is another model"):
        node.configure(model, name)
    monkeypatch.setitem(node.MODELS, "FLUX.1 dev", ("FLUX", 3, 2))
    assert str(node.configure(model, name, heads="L0H1").heads) == "L51H23; L0H1"
    monkeypatch.setitem(node.MODELS, "FLUX.1 dev", ("FLUX", 3, 2))
    with pytest.raises(LoomError, match="names heads of FLUX.1 dev"):
        node.configure(tiny_models.tiny("chroma").patcher, name)  # as many blocks and heads, and another model
    monkeypatch.setitem(node.MODELS, "SD3 medium", ("SD3", 2, 2))
    with pytest.raises(LoomError, match="SD3 medium"):
        node.configure(tiny_models.tiny("sd3").patcher, "SD3: red")  # this tiny one has the second attention of SD 3.5 medium


def test_every_preset_can_be_read_and_fits_its_model(node):
    from attention_loom.core.heads import HeadSet

    for preset in node.PRESETS.values():
        family, blocks, heads = node.MODELS[preset.model]
        HeadSet.parse(preset.heads).check(family, number({"double": blocks}), lambda block, n=heads: n)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"preset": "none"}, "preset 'none' was given"),
        ({"heads": "first"}, "'first' is not a selection of heads"),
        ({"found_heads": ""}, "found_heads is connected and names no head"),
        ({"found_heads": 3}, "found_heads holds a int"),
        ({"scale": float("nan")}, "scale nan was given"),
        ({"target": "mean"}, "target 'mean' was given; choose one of identity, uniform, query mean, max"),
        ({"rows": "text"}, "rows 'text' was given"),
        ({"rescale_mode": "std"}, "rescale_mode 'std' was given"),
        ({"backend": "fast"}, "backend 'fast' was given"),
        ({"start_percent": 2.0}, "start_percent 2 and end_percent 1 were given"),
    ],
)
def test_bad_input_gets_one_sentence(node, inputs, words):
    with pytest.raises(LoomError, match=words):
        node.configure(tiny_models.tiny("flux").patcher, **inputs)


def test_the_node_attaches_and_scale_zero_does_not(node):
    model = tiny_models.tiny("flux").patcher
    assert len(methods_of(node.LoomSoftPAG.execute(model, "auto", 3.0, 0.5).result[0])) == 1
    assert methods_of(node.LoomSoftPAG.execute(model, "auto", 0.0, 0.5).result[0]) == ()


def test_every_input_and_output_is_explained(node):
    schema = node.LoomSoftPAG.define_schema()
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
    assert {item.id for item in schema.inputs} == set(node.configure.__code__.co_varnames[: node.configure.__code__.co_argcount])
