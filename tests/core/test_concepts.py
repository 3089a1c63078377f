"""Phrases in prompts: found with the host's own tokenisers, at the places the host's encoders give them."""

from types import SimpleNamespace

import host_inprocess
import pytest
import torch
from attention_loom.core.concepts import locate
from attention_loom.core.errors import LoomError

pytestmark = pytest.mark.host

PROMPT = "A red-haired cat, and (two frogs:1.3) beside a crystal ball"


@pytest.fixture(scope="module", autouse=True)
def host():
    host_inprocess.import_host()


class SD3ClipModel:
    """Stands for the host's class of that name: which encoders are loaded."""

    def __init__(self, clip_l=True, clip_g=True, t5xxl=True):
        self.clip_l, self.clip_g, self.t5xxl = (object() if x else None for x in (clip_l, clip_g, t5xxl))


class FluxClipModel:
    """Stands for the host's class of that name."""


def clip_of(tokenizer, encoder=None):
    return SimpleNamespace(
        tokenizer=tokenizer, cond_stage_model=encoder or object(), tokenize=lambda text, return_word_ids=False, **kw: tokenizer.tokenize_with_weights(text, return_word_ids, **kw)
    )


def pieces(located):
    return {c.phrase: c.pieces for c in located.concepts}


def tokens(located):
    return {c.phrase: c.tokens for c in located.concepts}


def sd15():
    from comfy.sd1_clip import SD1Tokenizer

    return clip_of(SD1Tokenizer())


def test_clip_counts_from_the_start_token():
    found = locate(sd15(), PROMPT, ["cat", "red-haired", "two frogs", "crystal ball"])
    assert pieces(found)["cat"] == ("cat</w>",)
    assert pieces(found)["crystal ball"] == ("crystal</w>", "ball</w>")
    assert tokens(found)["cat"] == (5,)  # start, a, red, -, haired, cat
    assert tokens(found)["red-haired"] == (2, 3, 4)
    assert found.words == tuple(range(1, 1 + len(found.words))) and found.length == 77
    assert "cat</w>" in found.text and "tokens 5" in found.text


def test_a_long_prompt_goes_on_in_the_next_block_of_77():
    filler = ", ".join(["very detailed"] * 30)
    found = locate(sd15(), f"a cat, ({filler}:1.0), and a (frog:1.0)", ["cat", "frog"])
    assert found.length == 154
    assert tokens(found)["cat"] == (2,) and tokens(found)["frog"][0] > 77
    assert 0 not in found.words and 77 not in found.words, "start tokens are no words"


@pytest.mark.parametrize("phrase", ["at", "cats", "red cat", "frog"])
def test_only_whole_words_in_order_are_found(phrase):
    with pytest.raises(LoomError, match="does not stand in the prompt, whose tokens are: a</w> red</w>"):
        locate(sd15(), PROMPT, [phrase])


def test_one_thing_named_twice_is_refused():
    with pytest.raises(LoomError, match="'cat' and 'Cat' share tokens"):
        locate(sd15(), PROMPT, ["cat", "Cat"])


def test_sd3_has_two_runs_and_only_those_of_loaded_encoders():
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    tokenizer = SD3Tokenizer()
    both = locate(clip_of(tokenizer, SD3ClipModel()), PROMPT, ["cat"])
    assert both.length == 154 and both.concepts[0].pieces == ("cat</w>", "▁cat")
    clip, t5 = both.concepts[0].tokens
    assert clip == 5 and t5 >= 77
    assert locate(clip_of(tokenizer, SD3ClipModel(t5xxl=False)), PROMPT, ["cat"]).concepts[0].tokens == (5,)
    assert locate(clip_of(tokenizer, SD3ClipModel(False, False)), PROMPT, ["cat"]).concepts[0].tokens == (t5 - 77,)


def test_flux_reads_t5_alone_without_its_end_and_padding():
    from comfy.text_encoders.flux import FluxTokenizer

    found = locate(clip_of(FluxTokenizer(), FluxClipModel()), PROMPT, ["cat", "Crystal Ball"], 256)
    assert found.length == 256
    assert pieces(found)["cat"] == ("▁cat",) and "".join(pieces(found)["Crystal Ball"]).replace("▁", "") == "crystalball"
    assert len(found.words) < 40 and found.words[0] == 0


ENCODERS = {
    "qwen_image": ("QwenImage", "qwen25_7b"), "kandinsky5": ("Kandinsky5", "qwen25_7b"), "krea2": ("Krea2", "qwen3vl_4b"), "mage_flow": ("MageFlow", "qwen3vl_4b"),
    "joyimage": ("JoyImage", "qwen3vl_8b"),
}  # fmt: skip


@pytest.mark.parametrize("family", ENCODERS)
def test_positions_are_those_after_the_dropped_template(monkeypatch, family):
    """The host's own encoder class cuts the template; positions are checked against what it leaves."""
    import comfy.sd1_clip

    host = pytest.importorskip(f"comfy.text_encoders.{family}")
    name, key = ENCODERS[family]
    tokenizer, encoder = getattr(host, f"{name}Tokenizer")(), getattr(host, f"{name}TEModel")
    prompt = PROMPT.replace("(", "").replace(":1.3)", "")
    batch = tokenizer.tokenize_with_weights(prompt, True)
    n = len(batch[key][0])
    numbered = torch.arange(n).view(1, 1, n, 1) if family == "krea2" else torch.arange(n).view(1, n, 1)  # Krea keeps several layers
    monkeypatch.setattr(comfy.sd1_clip.SD1ClipModel, "encode_token_weights", lambda self, pairs: (numbered, None, {"attention_mask": torch.ones(1, n)}))
    made = object.__new__(encoder)
    object.__setattr__(made, "clip_l", SimpleNamespace(encode_token_weights=lambda pairs: (None, None)))
    left = made.encode_token_weights(batch)[0][0, :, 0].tolist()
    assert len(left) < n
    found = locate(clip_of(tokenizer, made), prompt, ["cat", "two frogs"], len(left))
    vocabulary = getattr(tokenizer, key).inv_vocab
    for concept in found.concepts:
        assert tuple(vocabulary[batch[key][0][left[t]][0]] for t in concept.tokens) == concept.pieces
    assert pieces(found)["two frogs"] == ("Ġtwo", "Ġfrogs")
    assert "user" not in " ".join(vocabulary[batch[key][0][left[t]][0]] for t in found.words)


@pytest.mark.parametrize(("family", "name", "key"), [("omnigen2", "Omnigen2Tokenizer", "qwen25_3b"), ("boogu", "BooguTokenizer", "qwen3vl_8b")])
def test_a_template_that_is_kept_counts(family, name, key):
    tokenizer = getattr(pytest.importorskip(f"comfy.text_encoders.{family}"), name)()
    batch = tokenizer.tokenize_with_weights("a red cat and two frogs", True)[key][0]
    found = locate(clip_of(tokenizer), "a red cat and two frogs", ["two frogs"], len(batch))
    vocabulary = getattr(tokenizer, key).inv_vocab
    assert found.length == len(batch) and "".join(vocabulary[batch[t][0]] for t in found.concepts[0].tokens) == "ĠtwoĠfrogs"


def test_aura_reads_its_t5_alone():
    from comfy.text_encoders.aura_t5 import AuraT5Tokenizer

    found = locate(clip_of(AuraT5Tokenizer()), PROMPT, ["cat", "crystal ball"], 256)
    assert found.length == 256 and pieces(found)["cat"] == ("▁cat",) and found.words[0] == 0


def test_a_tokeniser_that_does_not_tell_the_prompts_tokens_is_named():
    tokenizer = SimpleNamespace(l=SimpleNamespace(inv_vocab={}), tokenize_with_weights=lambda text, ids, **kw: {"l": [[(1, 1.0), (2, 1.0)]]})
    with pytest.raises(LoomError, match="SimpleNamespace does not tell which tokens are the prompt's"):
        locate(clip_of(tokenizer), "cat", ["cat"])


def test_z_image_keeps_its_template_and_other_scripts_are_found():
    from comfy.text_encoders.z_image import ZImageTokenizer

    clip = clip_of(ZImageTokenizer())
    prompt = "一只猫和 a frog"
    n = len(clip.tokenize(prompt)["qwen3_4b"][0])
    found = locate(clip, prompt, ["frog", "猫"], n)
    assert found.length == n and found.words[0] > 0
    assert pieces(found)["frog"] == ("Ġfrog",)


def test_a_conditioning_of_another_prompt_is_noticed_where_lengths_tell():
    with pytest.raises(LoomError, match="made from this prompt"):
        locate(sd15(), ", ".join(["very detailed"] * 60), ["detailed"], 77)


def test_an_unknown_text_encoder_is_named():
    tokenizer = SimpleNamespace(tokenize_with_weights=lambda text, ids, **kw: {"l": [[(1, 1.0, 1)]], "llama": [[(1, 1.0, 1)]]})
    with pytest.raises(LoomError, match="joins l, llama"):
        locate(clip_of(tokenizer), "cat", ["cat"])
