"""The nodes' inputs as a method, what the mask node hands on, and sentences for what does not fit."""

from types import SimpleNamespace

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core.attach import methods_of
from attention_loom.core.errors import LoomError
from attention_loom.core.methods.gradsam import Findings, Look

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
PROMPT = "a deer in a forest"


@pytest.fixture
def node():
    from attention_loom.nodes import gradsam

    return gradsam


@pytest.fixture(scope="module")
def clip():
    """The host's SD 1.5 tokeniser; its encoder would be a download and only the length of what it makes matters here."""
    host_inprocess.import_host()
    from comfy.sd1_clip import SD1Tokenizer

    words = SD1Tokenizer()
    return SimpleNamespace(
        tokenizer=words,
        cond_stage_model=object(),
        tokenize=lambda text, return_word_ids=False, **kw: words.tokenize_with_weights(text, return_word_ids, **kw),
        encode_from_tokens_scheduled=lambda tokens: [[torch.zeros(1, 77, 768), {}]],
    )


def test_the_node_encodes_locates_and_attaches(node, clip):
    model, reference = tiny_models.tiny("sd15").patcher, {"samples": torch.ones(1, 4, 4, 6)}
    patched, _, tokens, subject = node.LoomGradSAM.execute(model, clip, PROMPT, "deer", 0.8, node.DEFAULT_STEPS, reference=reference, threshold=1.0, dilate=1, tidy=True).result
    (method,) = methods_of(patched)
    assert "deer: deer</w> (tokens 2)" in tokens
    assert method.at == (0.11, 0.4, 0.62) and method.strength == 0.8 and method.reference is reference["samples"] and method.into is subject
    assert (method.rule.threshold, method.rule.dilate, method.rule.tidy, method.rule.soft) == (1.0, 1, True, False)
    assert not method.reads
    assert methods_of(node.LoomGradSAM.execute(model, clip, PROMPT, "deer", 0.0, "0.5", reference=reference).result[0]) == ()
    (looking,) = methods_of(node.LoomGradSAM.execute(model, clip, PROMPT, "deer", 1.0, "0.5").result[0])
    assert looking.reads


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"subjects": ""}, "no subject was given"),
        ({"subjects": "cat"}, "'cat' does not stand in the prompt"),
        ({"clip": None}, "no text encoder is connected"),
        ({"steps": "early"}, "steps 'early' cannot be read"),
        ({"steps": "0.5, 3"}, "from 0 to 1"),
        ({"method": "best"}, "method 'best' was given"),
        ({"phi": "max"}, "phi 'max' was given"),
        ({"scalar": "loss"}, "scalar 'loss' was given"),
        ({"soft": True, "tidy": True}, "switch one off"),
        ({"reference": {"samples": torch.ones(1, 4, 4, 6), "noise_mask": torch.ones(1, 4, 6)}}, "take the mask off the reference"),
        ({"method": "exact", "blocks": "3"}, "empty blocks"),
    ],
)
def test_bad_input_gets_one_sentence(node, clip, inputs, words):
    given = {"clip": clip, "prompt": PROMPT, "subjects": "deer", "strength": 1.0, "steps": "0.5"} | inputs
    with pytest.raises(LoomError, match=words):
        node.LoomGradSAM.execute(tiny_models.tiny("sd15").patcher, **given)


def found(batch=2):
    into = Findings()
    into.begin(("deer", "bird"))
    for step in (1, 4):
        mask = torch.zeros(batch, 4, 6)
        mask[:, :2] = step
        into.looks.append(Look(step, 9, 3.0, torch.rand(batch, 2, 4, 6), mask.clamp_max(1)))
    return into


def test_the_mask_node_hands_on_masks_heat_and_text(node):
    image = torch.rand(2, 32, 48, 3)
    mask, heat, text = node.LoomSubjectMask.execute(found(), None, 0, image).result
    assert mask.shape == (2, 32, 48) and float(mask.mean()) == pytest.approx(0.5, abs=0.01)
    assert len(heat) == 2 and all(h.ndim == 4 and h.shape[0] == 1 and h.shape[-1] == 3 for h in heat)
    assert "subjects: deer, bird" in text and "step 2 of 9" in text and "covers 50%, 50%" in text
    assert node.LoomSubjectMask.execute(found(), None, 1).result[0].shape == (2, 32, 48)
    assert node.choose(found(), 1).step == 1 and node.choose(found(), 0).step == 4


def test_the_mask_node_says_what_is_missing(node):
    with pytest.raises(LoomError, match="nothing was measured yet"):
        node.choose(Findings(), 0)
    with pytest.raises(LoomError, match="choose 1 to 2"):
        node.choose(found(), 3)


def test_every_input_and_output_is_explained(node):
    for kind in (node.LoomGradSAM, node.LoomSubjectMask):
        schema = kind.define_schema()
        assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
    taken = set(node.configure.__code__.co_varnames[: node.configure.__code__.co_argcount])
    assert {item.id for item in node.LoomGradSAM.define_schema().inputs} - {"model", "clip", "prompt", "subjects", "positive"} == taken - {"located"}
