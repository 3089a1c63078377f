"""A search in a real ComfyUI on the toy world's video model: preview and progress, an interrupt, and going on from there."""

import json

import pytest
import safetensors.torch
from attention_loom.tools.headless import HostError

pytestmark = pytest.mark.server


def search(graph, **settings):
    nodes = dict(graph(21).nodes)
    nodes["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": "toy_wan_vae.safetensors"}}
    links = {"model": ["unet", 0], "positive": ["positive", 0], "vae": ["vae", 0], "latent": ["latent", 0]}
    own = {"goal": "contrast", "name": "server test", "per_round": 2, "rounds": 1, "pairs": 1, "steps": 3, "cfg": 1.0, "scale": 3.0, "u": 1.0, "seed": 5}
    nodes["hunter"] = {"class_type": "LoomHeadHunter", "inputs": links | own | settings}
    return nodes


def test_an_interrupted_search_goes_on_and_its_heads_load(host, graph):
    seen = []

    def watch(node, value, most):
        if node == "hunter":
            seen.append((value, most))
            if value >= 18 and len(seen) < 100:
                seen.extend([(0, 0)] * 100)
                host.interrupt()

    with pytest.raises(HostError, match="interrupted"):
        host.run(search(graph, pairs=3), progress=watch)
    folder = host.base / "output" / "attention_loom" / "heads"
    (scores,) = (folder / "scores").glob("*.jsonl")
    made = len(scores.read_text().splitlines()) - 1
    assert 18 <= made < 30, "the interrupt came before the end"
    begun = json.loads((folder / "server test.json").read_text())
    assert not begun["finished"]
    assert begun["family"] == "Wan"
    assert begun["heads"]

    result = host.run(search(graph, pairs=3))
    report = result.outputs["hunter"]["text"][0]
    assert f"30 pictures, {30 - made} of them made now" in report
    assert json.loads((folder / "server test.json").read_text())["finished"]
    assert host.file(result.outputs["hunter"]["images"][0]).is_file()

    found = graph(21)
    found.nodes["found"] = {"class_type": "LoomLoadHeads", "inputs": {"name": "server test"}}
    _, report = found.add("LoomSoftPAG", preset="auto", scale=3.0, u=0.5, found_heads=["found", 0]).run(host, report=True)
    assert "3 extra evaluations of the model" in report


def test_a_search_that_takes_too_long_says_so_before_it_starts(host, graph):
    with pytest.raises(HostError, match=r"the search would take about .*: \d+ pictures at .* minutes allows 0.01"):
        host.run(search(graph, name="long", pairs=3, minutes=0.01, seed=9))


def test_a_clip_file_judges_the_pictures(host, graph):
    """A tiny CLIP with random weights in models/clip_vision: the search knows each prompt's text and scores with it."""
    from tiny_clip import reference, state_of

    folder = host.base / "models" / "clip_vision"
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state_of(reference()), folder / "tiny_clip.safetensors")
    nodes = search(graph, name="judged", prompts="a red circle moving right\na blue square moving left", pairs=2, clip=["clip", 0], scorer=["judge", 0])
    nodes["judge"] = {"class_type": "LoomModelScorer", "inputs": {"model_name": "tiny_clip.safetensors", "measure": "prompt match", "weight": 1.0}}
    host.run(nodes)
    found = json.loads((host.base / "output" / "attention_loom" / "heads" / "judged.json").read_text())
    assert found["goal"] == "prompt match by tiny_clip.safetensors"
    assert found["finished"]
    assert found["score_without_guidance"] != 0

    nodes["hunter"]["inputs"] |= {"prompts": "", "name": "blind"}
    with pytest.raises(HostError, match="the search knows no text; write 'prompts' and connect clip"):
        host.run(nodes)
