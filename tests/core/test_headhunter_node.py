"""The nodes of HeadHunter: inputs as a search or a scorer, a search through the node, and sentences for what does not fit."""

import json

import pytest
from attention_loom.core.errors import LoomError
from attention_loom.core.hunt.scorers import Shot
from test_headhunter import Eye, flat

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


@pytest.fixture
def node(monkeypatch, tmp_path):
    import folder_paths
    from attention_loom.nodes import headhunter

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(headhunter.ui, "PreviewImage", lambda picture, cls: type("P", (), {"as_dict": lambda self: {"images": [{}]}})())
    return headhunter


def inputs(name="flux"):
    import tiny_models

    model = tiny_models.tiny(name)
    return dict(model=model.patcher, positive=model.positive, vae=Eye(), latent={"samples": model.latent}, goal="brightness", name="my heads")


SMALL = dict(per_round=2, rounds=1, pairs=1, steps=2)


def test_a_search_through_the_node(node, monkeypatch, tmp_path):
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id=None: seen.append((value, total, preview)))
    heads, page, text, report = node.LoomHeadHunter.execute(**inputs(), **SMALL).result
    assert heads == text == (tmp_path / "attention_loom" / "heads" / "my heads.json").read_text()
    data = json.loads(text)
    assert len(data["heads"]) == 2
    assert data["goal"] == "brightness"
    assert data["finished"]
    assert f"heads: {', '.join(data['heads'])}" in report or all(h in report for h in data["heads"])
    assert page.shape[0] == 1
    assert page.shape[2:] == (1240, 3)
    value, total, (kind, picture, size) = seen[-1]
    assert (kind, size) == ("JPEG", 1240)
    assert picture.width == 1240
    assert 0 < value <= total
    assert node.LoomLoadHeads.execute("my heads.json").result == (text, text)
    (tmp_path / "attention_loom" / "heads" / "typed.json").write_text("7-10, L9H3")
    assert node.LoomLoadHeads.execute("typed").result[0] == "7-10, L9H3"
    before = node.LoomLoadHeads.fingerprint_inputs("my heads")
    assert before != node.LoomLoadHeads.fingerprint_inputs("others")

    from attention_loom.nodes import softpag

    assert [i.text for i in softpag.configure(inputs()["model"], found_heads=heads).heads.items] == data["heads"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cfg": 3.0}, "cfg 3 was given without a negative prompt"),
        ({"prompts": "a cat"}, "prompts were written without a text encoder"),
        ({"goal": "beauty"}, "goal 'beauty' was given; choose one of sharpness, colourfulness, brightness, contrast, prompt attention"),
        ({"goal": "prompt attention"}, "prompt attention needs the prompts as text"),
        ({"name": "../x"}, "'../x' is not a name for a heads file"),
        ({"name": ""}, "'' is not a name for a heads file"),
        ({"per_round": 7}, "1 rounds of 7 heads were asked for, and the chosen blocks have 6 heads"),
        ({"blocks": "12"}, "blocks '12' selects nothing"),
        ({"target": "none"}, "target 'none' was given"),
        ({"if_longer": "stop"}, "if_longer 'stop' was given"),
        ({"scorer": 1}, "the scorer socket holds a int"),
        ({"rows": "image_image", "target": "max"}, "rows image_image is a form of the identity"),
        ({"u": 0.0}, "scale 3 and u 0 were given"),
    ],
)
def test_bad_input_gets_one_sentence(node, change, words):
    with pytest.raises(LoomError, match=words):
        node.LoomHeadHunter.execute(**inputs() | SMALL | change)


def test_a_connected_scorer_is_used_instead_of_the_goal(node):
    class Dark:
        name, key = "dark", "1"

        def __call__(self, images, prompt):
            return -images.mean()

    _, _, text, _ = node.LoomHeadHunter.execute(**inputs() | SMALL | {"scorer": Dark(), "name": "dark"}).result
    assert json.loads(text)["goal"] == "dark"
    assert json.loads(text)["score_without_guidance"] < 0


def test_scorers_from_the_node(node):
    grey, red = Shot(flat(0.5, 0.5, 0.5), ""), Shot(flat(0.5, 0.0, 0.0), "")
    like = node.LoomPictureScorer.execute("reference look", 1.0, reference=grey.images).result[0]
    assert like.score(grey) == pytest.approx(1.0)
    assert like.score(red) < 0.9
    less = node.scorer("brightness", -2.0)
    assert less.score(grey) == pytest.approx(-1.0)
    both = node.scorer("brightness", 1.0, plus=like)
    assert both.score(grey) == pytest.approx(1.5)
    assert both.name == "brightness + reference look"
    assert node.scorer("brightness", 1.0, plus=like, join="harmonic mean").score(grey) == pytest.approx(2 / 3)
    assert node.scorer("prompt attention", words="red, blue ball").words == ("red", "blue ball")

    class Vision:
        def encode_image(self, images):
            return {"image_embeds": images.mean((1, 2))}

    assert node.scorer("reference look", reference=grey.images, clip_vision=Vision()).score(red) == pytest.approx(3**-0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"measure": "beauty"}, "measure 'beauty' was given"),
        ({"measure": "reference look"}, "measure 'reference look' needs a picture to compare with; connect reference"),
        ({"measure": "contrast", "weight": 0.0}, "weight 0 was given"),
        ({"measure": "contrast", "plus": 2}, "the scorer socket holds a int"),
        ({"measure": "contrast", "plus": lambda i, p: 0.0, "join": "max"}, "join 'max' was given"),
    ],
)
def test_scorers_that_cannot_be(node, given, words):
    with pytest.raises(LoomError, match=words):
        node.scorer(**given)


def test_every_input_and_output_is_explained(node):
    for cls in (node.LoomHeadHunter, node.LoomPictureScorer, node.LoomLoadHeads):
        schema = cls.define_schema()
        assert all(len(item.tooltip or "") > 20 for item in schema.inputs)
        assert all(item.tooltip for item in schema.outputs)
    code = node.configure.__code__
    assert {i.id for i in node.LoomHeadHunter.define_schema().inputs} - {"name"} == set(code.co_varnames[: code.co_argcount]) - {"heads_file"}
