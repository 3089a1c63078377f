"""The committed checkpoints, through ComfyUI's own loaders."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from attention_loom.toyworld import bundles, host, latent, sampling, text_encoder, vocabulary, world

pytestmark = pytest.mark.host
FILES = {"toy_wan_t2v": 16e6, "toy_umt5": 5e6, "toy_wan_vae": 16e6}


@pytest.fixture(scope="module")
def loaded():
    host.load_host()
    return *bundles.load(bundles.SHAPES, host.CHECKPOINTS), bundles.load_vae(bundles.SHAPES, host.CHECKPOINTS)


@pytest.mark.parametrize("name", FILES)
def test_files_are_small_and_half_precision(name):
    from safetensors import safe_open

    path = host.CHECKPOINTS / f"{name}.safetensors"
    assert path.stat().st_size <= FILES[name]
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} <= {torch.float16, torch.uint8}  # noqa: SIM118
        assert "toyworld" in file.metadata() or "te_config" in file.metadata()


def test_stock_nodes_load_and_sample(loaded, tmp_path):
    """UNETLoader, VAELoader, CLIPTextEncode, KSampler and VAEDecode, called as the host calls them."""
    import folder_paths

    import nodes

    folder_paths.add_model_folder_path("diffusion_models", str(host.CHECKPOINTS))
    folder_paths.add_model_folder_path("vae", str(host.CHECKPOINTS))
    with torch.inference_mode():
        model = nodes.UNETLoader().load_unet("toy_wan_t2v.safetensors", "default")[0]
        vae = nodes.VAELoader().load_vae("toy_wan_vae.safetensors")[0]
        clip = text_encoder.load(host.CHECKPOINTS / "toy_umt5.safetensors")
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a blue square standing still", ""))
        empty = {"samples": torch.zeros(1, 16, 2, 8, 8)}
        out = nodes.KSampler().sample(model, 3, 2, 3.0, "euler", "simple", positive, negative, empty)[0]
        frames = nodes.VAEDecode().decode(vae, out)[0]
    assert type(model.model).__name__ == "WAN21" and frames.shape == (5, 64, 64, 3) and frames.isfinite().all()


def test_noise_is_the_host_noise(loaded):
    import comfy.sample

    assert torch.equal(sampling.noise_of(5, 3), comfy.sample.prepare_noise(torch.zeros(1, 16, 3, 8, 8), 5))


def test_context_is_the_trained_embedding(loaded):
    _, clip, _ = loaded
    from safetensors import safe_open

    with safe_open(host.CHECKPOINTS / "toy_umt5.safetensors", "pt") as file:
        shared = file.get_tensor("shared.weight").float()
    caption = "a purple triangle orbiting counterclockwise"
    with torch.inference_mode():
        tokens = clip.tokenize(caption)
        context = clip.encode_from_tokens(tokens)
        bare = clip.encode_from_tokens(clip.tokenize(""))
    ids = [pair[0] for pair in tokens["umt5xxl"][0]]
    assert context.shape == (1, vocabulary.LENGTH, vocabulary.WIDTH) and len(set(ids[:6])) == 6 and 2 not in ids
    expected = vocabulary.normalised(shared)[[*ids[:6], *[len(shared)] * 18]]
    assert (context[0] - expected).abs().max() < 5e-3
    assert not context[0, 6:].any() and bare[0, 0].any() and not bare[0, 1:].any()


def test_every_word_is_one_token_and_others_say_nothing(loaded):
    _, clip, _ = loaded
    for word in vocabulary.WORDS:
        ids = [pair[0] for pair in clip.tokenize(word)["umt5xxl"][0]]
        assert ids[0] > 2 and ids[1] == 1
    with torch.inference_mode():
        assert not clip.encode_from_tokens(clip.tokenize("dragon"))[0, 0].any()


def test_encoder_is_the_linear_latent(loaded):
    _, _, vae = loaded
    import comfy.latent_formats

    frames = world.render(world.random_scene(random.Random(6)))
    with torch.inference_mode():
        encoded = comfy.latent_formats.Wan21().process_in(vae.encode(frames))[0]
    assert (encoded - latent.encode(frames)).abs().max() < 0.03


def test_round_trip_is_sharp(loaded):
    from attention_loom.toyworld import evaluate

    clips = evaluate.truth_clips(evaluate.held_out(3), 21)
    assert min(evaluate.round_trip_psnr(clips)) > 28


def test_training_decodes_as_the_host_does(loaded):
    from attention_loom.toyworld import train_vae, vae

    model = vae.build(8)
    with torch.inference_mode():
        z = torch.randn(1, 16, 3, 2, 2)
        assert torch.allclose(train_vae.decode_at_once(model, z), model.decode(z), atol=1e-4)


def test_sampling_is_paired_and_patchable(loaded):
    calls = []

    def patch(model):
        calls.append(type(model).__name__)
        return model.clone()

    captions = ["a red circle moving right", "a green square standing still"]
    one = sampling.sample_latents(captions, 2, [1, 2], steps=2)
    two = sampling.sample_latents(captions[1:], 2, [2], patch=patch, steps=2)
    assert calls == ["ModelPatcher"] and one.shape == (2, 16, 2, 8, 8)
    assert torch.allclose(one[1], two[0], atol=1e-3)
    fine, coarse = (sampling.decode_clips(one, decoder) for decoder in ("vae", "linear"))
    assert fine.shape == coarse.shape == (2, 5, 64, 64, 3) and (fine - coarse).abs().mean() < 0.1


def test_colour_is_followed(loaded):
    from attention_loom.toyworld import measures

    captions = [f"a {colour} circle standing still" for colour in ("red", "blue")]
    clips = sampling.sample_clips(captions, 6, [11, 12], steps=8)
    for clip, caption in zip(clips, captions):
        assert measures.measure_clip(clip, caption)["colour"] > 0.9


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sampling.sample_latents(["a red dog"], 2, [0]), "not a caption of the shapes world"),
        (lambda: sampling.sample_latents(["a red circle moving right"], 2, [0, 1]), "as many seeds"),
        (lambda: sampling.decode_clips(torch.zeros(1, 16, 2, 8, 8), "magic"), "'vae' or 'linear'"),
        (lambda: sampling.sample_latents(["a red circle moving right"], 2, [0], folder=Path("/nowhere")), "toy_wan_t2v.safetensors"),
    ],
)
def test_bad_requests_get_one_sentence(loaded, call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["foreign", "truncated", "absent"])
def test_foreign_text_encoders_are_refused(loaded, tmp_path, kind):
    path = host.CHECKPOINTS / "toy_wan_vae.safetensors"
    if kind != "foreign":
        content = (host.CHECKPOINTS / "toy_umt5.safetensors").read_bytes()[:5000]
        path = tmp_path / "te.safetensors"
        if kind == "truncated":
            path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a toy text encoder") as error:
        text_encoder.load(path)
    assert "\n" not in str(error.value)


def test_node_folder_stands_alone(loaded, monkeypatch):
    """The host imports the folder by its path, under a name of its own."""
    import folder_paths

    folder = Path(text_encoder.__file__).parent / "comfy_node"
    spec = importlib.util.spec_from_file_location("toy_world_node", folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # as the host does
    spec.loader.exec_module(module)
    folder_paths.add_model_folder_path("text_encoders", str(host.CHECKPOINTS))
    node = module.NODE_CLASS_MAPPINGS["ToyWorldTextEncoder"]
    assert "toy_umt5.safetensors" in node.INPUT_TYPES()["required"]["clip_name"][0]
    clip = node().load("toy_umt5.safetensors")[0]
    assert len(clip.tokenize("a red circle moving up")["umt5xxl"][0]) == vocabulary.LENGTH


def test_gate_results_are_recorded():
    gate = json.loads((host.RESULTS / "native_gate.json").read_text())
    assert gate["clips"] >= 100 and set(gate["gate"]) >= {"colour", "motion", "iou", "round_trip_psnr"}
    lengths = json.loads((host.RESULTS / "length_stock.json").read_text())
    for family in ("orbits", "straight"):
        assert set(lengths["families"][family]) == {"1x", "2x", "3x", "4x"}
