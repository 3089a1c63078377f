"""The node's inputs as a method: presets by model, words found in the prompt, and sentences for what does not fit."""

from types import SimpleNamespace

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core.attach import methods_of
from attention_loom.core.errors import LoomError

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
PROMPT = "a cat and a frog"


@pytest.fixture
def node():
    from attention_loom.nodes import astar

    return astar


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
        encode_from_tokens_scheduled=lambda tokens: [[torch.zeros(1, 77, 768), {"made": "here"}]],
    )


def test_presets_follow_the_model(node, clip):
    located = node.find(clip, PROMPT, "cat\nfrog", [[torch.zeros(1, 77, 768), {}]])
    settings = {name: node.configure(tiny_models.tiny(name).patcher, located) for name in ("sd15", "sd3", "flux", "wan")}
    assert (settings["sd15"].step_mode, settings["sd15"].alpha, settings["sd15"].maps, settings["sd15"].window.end) == ("paper", 20.0, "sharpened", 1.0)
    for name in ("sd3", "flux", "wan"):
        assert (settings[name].step_mode, settings[name].eta, settings[name].maps, settings[name].window.end) == ("normalised", 0.02, "raw", 0.5)
    sdxl = node.configure(tiny_models.tiny("sd15").patcher, located, preset="SDXL", alpha=70.0)
    assert (sdxl.alpha, sdxl.window.end) == (10.0, 0.6)
    mine = node.configure(tiny_models.tiny("sd3").patcher, located, preset="custom", alpha=7.0, step_mode="paper", maps="sharpened")
    assert (mine.alpha, mine.step_mode, mine.maps, mine.window.end) == (7.0, "paper", "sharpened", 1.0)


def test_the_node_encodes_locates_and_attaches(node, clip):
    model = tiny_models.tiny("sd15").patcher
    patched, positive, tokens = node.LoomAStar.execute(model, clip, PROMPT, " cat \n\nfrog", 1.0, "a_star", "auto").result
    assert positive[0][1] == {"made": "here", "loom_prompt": "a cat and a frog"}
    assert "cat: cat</w> (tokens 2)" in tokens and "frog: frog</w> (tokens 5)" in tokens
    assert [c.phrase for c in methods_of(patched)[0].concepts.concepts] == ["cat", "frog"]
    given = [[torch.zeros(1, 77, 768), {"made": "elsewhere"}]]
    assert node.LoomAStar.execute(model, clip, PROMPT, "cat\nfrog", 0.0, "a_star", "auto", positive=given).result[1][0][0] is given[0][0]
    assert methods_of(node.LoomAStar.execute(model, clip, PROMPT, "cat\nfrog", 0.0, "a_star", "auto").result[0]) == ()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"concepts": " \n "}, "no concept was given"),
        ({"concepts": "cat\ndog"}, "'dog' does not stand in the prompt"),
        ({"concepts": "cat"}, "segregation needs two"),
        ({"clip": None}, "no text encoder is connected"),
        ({"loss": "both"}, "loss 'both' was given"),
        ({"preset": "SD9"}, "preset 'SD9' was given"),
        ({"maps": "soft"}, "maps 'soft' was given"),
        ({"step_mode": "fast"}, "step_mode 'fast' was given"),
        ({"masks": torch.ones(3, 8, 8)}, "at most 2 masks"),
    ],
)
def test_bad_input_gets_one_sentence(node, clip, inputs, words):
    given = {"clip": clip, "prompt": PROMPT, "concepts": "cat\nfrog", "strength": 1.0, "loss": "a_star", "preset": "auto"} | inputs
    with pytest.raises(LoomError, match=words):
        node.LoomAStar.execute(tiny_models.tiny("sd15").patcher, **given)


def test_every_input_and_output_is_explained(node):
    schema = node.LoomAStar.define_schema()
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
    taken = set(node.configure.__code__.co_varnames[: node.configure.__code__.co_argcount])
    assert {item.id for item in schema.inputs} - {"clip", "prompt", "concepts", "positive"} == taken - {"located"}
