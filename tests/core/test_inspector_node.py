"""The two nodes: inputs as a method, sentences for what cannot be read, and a whole way from model to pictures and heads."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from attention_loom.core.attach import methods_of
from attention_loom.core.errors import LoomError

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
MEASURING = ("prune", "sure", "spare_memory", "guidance", "part", "reuse_prefix")
"""Inputs that only importance has, in their order: saved workflows count on it."""


@pytest.fixture
def node():
    from attention_loom.nodes import inspector

    return inspector


def test_inputs_as_a_method(node):
    method = node.configure("0, 0.5 1", blocks="0-1", points="0.5,0.25; 1,0\n", branch="both", rows=64)
    assert method.percents == (0.0, 0.5, 1.0)
    assert method.points == ((0.5, 0.25), (1.0, 0.0))
    assert (method.branch, method.rows, method.blocks.text) == ("both", 64, "0-1")
    assert method.words is None


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"steps": "early"}, "steps 'early' cannot be read; write numbers, for instance 0.15, 0.45, 0.75"),
        ({"steps": ""}, "0 steps were given"),
        ({"points": "0.5"}, "points '0.5' cannot be read; write x,y pairs"),
        ({"points": "a,b"}, "points 'a,b' cannot be read"),
        ({"words": "cat"}, "words were given without clip and conditioning and prompt"),
        ({"words": "cat", "prompt": "a cat", "clip": object()}, "words were given without conditioning"),
        ({"blocks": "first"}, "'first' is not a block selection"),
    ],
)
def test_bad_input_gets_one_sentence(node, inputs, words):
    with pytest.raises(LoomError, match=words):
        node.configure(**inputs)


def test_from_the_model_to_pictures_heads_and_numbers(node, monkeypatch):
    from attention_loom.nodes import softpag

    saved = []
    monkeypatch.setattr(node.ui, "PreviewImage", lambda picture, cls: saved.append(picture) or type("P", (), {"as_dict": lambda self: {"images": [{}]}})())
    model = tiny_models.tiny("flux")
    patched, inspection = node.LoomInspector.execute(model.patcher, "0, 0.5", points="0.5,0.5").result
    with pytest.raises(LoomError, match="nothing was sampled with the inspected model yet"):
        node.LoomInspectorPictures.execute(inspection, None, "all", "distance", "lowest", 3)
    latent = tiny_models.sample(patched, model)

    image = torch.zeros(1, 32, 48, 3)
    pictures, heads, report, numbers = node.LoomInspectorPictures.execute(inspection, latent, "all", "distance", "lowest", 3, image=image).result
    assert len(pictures) == len(saved) == 7
    assert all(p.ndim == 4 and p.shape[3] == 3 and p.dtype == torch.float32 and float(p.max()) <= 1 for p in pictures)
    assert json.loads(numbers)["chosen"]["heads"] == heads
    assert heads in report
    assert str(softpag.configure(model.patcher, found_heads=heads).heads) == heads.replace(",", ";")
    (one,), *_ = node.LoomInspectorPictures.execute(inspection, latent, "masses", "distance", "lowest", 3).result
    assert not np.array_equal(one.shape, pictures[0].shape)
    with pytest.raises(LoomError, match="picture 'all of them' was given; choose one of all, heads, "):
        node.LoomInspectorPictures.execute(inspection, latent, "all of them", "distance", "lowest", 3)
    with pytest.raises(LoomError, match="the picture 'words' cannot be drawn: no words were given"):
        node.LoomInspectorPictures.execute(inspection, latent, "words", "distance", "lowest", 3)


def test_a_run_that_is_inspected_twice_hands_on_the_newest(node):
    model = tiny_models.tiny("sd15")
    patched, inspection = node.LoomInspector.execute(model.patcher, "0.5").result
    assert len(methods_of(patched)) == 1
    tiny_models.sample(patched, model)
    first = inspection.last
    tiny_models.sample(patched, model)
    assert inspection.last is not first


def test_how_importance_is_measured_reaches_the_study(node):
    model = tiny_models.tiny("flux")
    asked = {"prune": "zero", "sure": False, "spare_memory": False, "guidance": True, "part": "image_text", "reuse_prefix": True}
    patched, inspection = node.LoomInspector.execute(model.patcher, "0", importance="full", **asked).result
    tiny_models.sample(patched, model)
    study = inspection.last
    assert study.how == {"importance": "full", "prune": "zero", "part": "image_text", "reuse_prefix": "on"}
    assert study.evaluations == 2 * 6
    assert study.handed_on > 0
    assert study.pruned[0][2, 1]["importance guidance"] > 0
    numbers = node.LoomInspectorPictures.execute(inspection, None, "heads", "importance guidance", "highest", 3).result[3]
    assert json.loads(numbers)["importance"]["part"] == "image_text"
    assert [item.id for item in node.LoomInspector.define_schema().inputs][-len(MEASURING) :] == list(MEASURING)


def test_every_input_and_output_is_explained(node):
    for cls in (node.LoomInspector, node.LoomInspectorPictures):
        schema = cls.define_schema()
        assert all(len(item.tooltip or "") > 20 for item in schema.inputs)
        assert all(item.tooltip for item in schema.outputs)
    assert {item.id for item in node.LoomInspector.define_schema().inputs} - {"model", "importance", *MEASURING} == set(
        node.configure.__code__.co_varnames[: node.configure.__code__.co_argcount]
    )
