"""Files of the second toy world through the host's loaders and the toy world's own node folder."""

import json
import random
import sys

import pytest
import torch
from attention_loom.toyworld import comfy_node, host
from attention_loom.toyworld.scenes import Mix, random_caption

pytestmark = pytest.mark.host
PROMPT = "a small red circle on the left and a striped blue square on a green dotted background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Untrained models and text encoders, written by their trainers; zero output layers are made to say something."""
    from attention_loom.toyworld.training import sd3, sd15, wan

    path = tmp_path_factory.mktemp("files")
    for task in (wan.Wan, sd3.SD3, sd15.SD15):
        built = task(0, compiled=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in built.parameters():
                if p.ndim == 1 or not p.any():  # norms and biases are ones and zeros: nothing would notice if they were lost
                    p.add_(0.1 * torch.randn(p.shape, generator=generator))
        built.text.half().float()  # what the file holds, so that only the host's arithmetic differs
        built.export(path, {"seed": 0})
        torch.save(built.text.state_dict(), path / f"{built.name}_tower.pt")
    return path


def _tower(folder, name, kind):
    from attention_loom.toyworld.training import text

    tower = (text.T5Tower if kind == "t5" else text.ClipTower)()
    tower.load_state_dict(torch.load(folder / f"{name}_tower.pt"))
    return tower


def _captions(moving):
    rng = random.Random(7)
    drawn = [str(random_caption(rng, moving, Mix(two=0.5, three=0.5))) for _ in range(6)]
    return ["", *drawn, max((str(random_caption(rng, moving, count=3)) for _ in range(100)), key=len)]


@pytest.mark.parametrize(("name", "kind"), [("scenes_wan_t2v", "t5"), ("scenes_sd3", "t5"), ("scenes_sd15", "clip")])
def test_conditioning_equals_the_trained_tower(folder, name, kind):
    from attention_loom.toyworld.training import words

    import nodes

    tower = _tower(folder, name, kind)
    clip = comfy_node.load_text_encoder(str(folder / f"{name}_text.safetensors"))
    with torch.inference_mode():
        for caption in _captions(name == "scenes_wan_t2v"):
            wanted = tower(words.rows_tensor([caption], kind))
            found = nodes.CLIPTextEncode().encode(clip, caption)[0][0][0]
            width = wanted.shape[-1]
            assert found.shape == ((1, 36, 4096) if kind == "t5" else (1, 77, 128))
            assert (found[..., :width] - wanted).abs().max() < 2e-3 * wanted.abs().max(), caption
            assert not found[..., width:].any()


def test_prompt_weights_and_clones_work(folder):
    clip = comfy_node.load_text_encoder(str(folder / "scenes_sd3_text.safetensors")).clone()
    with torch.inference_mode():
        plain, heavy = (clip.encode_from_tokens(clip.tokenize(text)) for text in ("a red circle on a grey background", "a (red circle:1.3) on a grey background"))
    assert plain.shape == heavy.shape and not torch.equal(plain, heavy)
    with pytest.raises(ValueError, match="no word 'dog'"):
        clip.tokenize("a red dog")


@pytest.mark.parametrize("name", ["scenes_sd3", "scenes_sd15"])
@pytest.mark.parametrize("prompt", ["a red dog on a grey background", "a (red:1.2) (dog:1.4) on a grey background"])
def test_strange_words_are_named(folder, name, prompt):
    clip = comfy_node.load_text_encoder(str(folder / f"{name}_text.safetensors"))
    with pytest.raises(ValueError, match="no word 'dog'") as error:
        clip.tokenize(prompt)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="too long"):
        clip.tokenize("a red circle and " * 30)


def _sample(model, clip, latent, prompt=PROMPT):
    import nodes

    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (prompt, ""))
        return nodes.KSampler().sample(model, 3, 2, 3.0, "euler", "simple", positive, negative, {"samples": latent})[0]["samples"]


@pytest.mark.parametrize(("name", "kind", "shape"), [("scenes_wan_t2v", "WAN21", (1, 16, 2, 8, 8)), ("scenes_sd3", "SD3", (1, 16, 16, 16))])
def test_stock_loader_takes_the_model_and_it_samples(folder, name, kind, shape):
    import folder_paths

    import nodes

    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    with torch.inference_mode():
        model = nodes.UNETLoader().load_unet(f"{name}.safetensors", "default")[0]
    clip = comfy_node.load_text_encoder(str(folder / f"{name}_text.safetensors"))
    prompt = "a red circle moving right on a grey background" if len(shape) == 5 else PROMPT
    out = _sample(model, clip, torch.zeros(shape), prompt)
    assert type(model.model).__name__ == kind and out.shape == shape and out.isfinite().all()
    assert not torch.equal(out, _sample(model, clip, torch.zeros(shape), prompt.replace("red", "white")))


def test_unet_is_the_hosts_sd15_and_computes_what_was_trained(folder):
    import comfy.latent_formats
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops
    import comfy.supported_models
    from attention_loom.toyworld.training import sd15
    from safetensors.torch import load_file

    known = list(comfy.supported_models.models)
    path = folder / "scenes_sd15.safetensors"
    model = comfy_node.load_unet(str(path))
    assert comfy.supported_models.models == known  # nothing was registered
    assert isinstance(model.model.model_config, comfy.supported_models.SD15)
    assert isinstance(model.model.latent_format, comfy.latent_formats.SD3)
    direct = unet.UNetModel(**sd15.SIZES, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    direct.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(2, 77, 128, generator=generator)
    t = torch.tensor([10.0, 700.0])
    with torch.inference_mode():
        wanted = direct(x, t, context=context)
        found = model.model.diffusion_model(x.to(model.model.get_dtype()), t, context=context.to(model.model.get_dtype())).float()
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    clip = comfy_node.load_text_encoder(str(folder / "scenes_sd15_text.safetensors"))
    out = _sample(model, clip, torch.zeros(1, 16, 16, 16))
    assert out.isfinite().all() and not torch.equal(out, _sample(model, clip, torch.zeros(1, 16, 16, 16), PROMPT.replace("red", "white")))


def test_the_training_loss_is_the_error_of_the_picture_that_the_host_denoises(folder, monkeypatch):
    """Both are errors of the same picture, weighted by (sigma^2 + 1) / sigma^2 up to a limit: trained and loaded model agree on what is predicted."""
    from attention_loom.toyworld.training import pools, sd15, words
    from safetensors.torch import load_file

    task = sd15.SD15(0, False)
    task.model.load_state_dict({name: value.float() for name, value in load_file(folder / "scenes_sd15.safetensors").items()})
    clean = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    pool = pools.Pool(clean, words.rows_tensor([PROMPT], "clip"), [torch.zeros(0, 4)], [PROMPT])
    drawn = []
    monkeypatch.setattr(sd15.torch, "randn", lambda *a, generator, _draw=torch.randn, **k: drawn.append(_draw(*a, generator=generator, **k)) or drawn[-1])
    monkeypatch.setattr(sd15, "EMPTY_PROMPT", 0.0)
    seen = []
    inner = task.model.forward
    monkeypatch.setattr(task.model, "forward", lambda x, t, context=None, **k: seen.append((t, context)) or inner(x, t, context=context, **k))
    with torch.no_grad():
        error = task.error(pool, torch.tensor([0]), torch.Generator().manual_seed(3))
    (t, context), (noise,) = seen[0], drawn
    model = comfy_node.load_unet(str(folder / "scenes_sd15.safetensors")).model
    sigma = model.model_sampling.sigma(t)
    with torch.inference_mode():
        denoised = model.apply_model((clean + sigma.view(-1, 1, 1, 1) * noise), sigma, c_crossattn=context).float()
    scaled = (denoised - clean) ** 2 * min(sd15.SNR_LIMIT, float((sigma**2 + 1) / sigma**2))
    assert torch.allclose(error, scaled, rtol=0.05, atol=0.02 * float(scaled.max()))


def _rewrite(source, target, metadata=None, drop=None, shape=None):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    with safe_open(source, "pt") as file:
        kept = file.metadata()
    tensors = {name: value for name, value in tensors.items() if name != drop}
    if shape:
        tensors[shape] = tensors[shape][:, :5].contiguous()
    save_file(tensors, target, metadata=kept if metadata is None else metadata)
    return str(target)


TEXT, UNET = comfy_node.load_text_encoder, comfy_node.load_unet
T5 = {"kind": "t5", "config": {"d_model": 256}, "length": 36}
BAD = {
    "text: absent": (TEXT, lambda f, t: str(t / "none.safetensors"), "is not a toy text encoder"),
    "text: truncated": (TEXT, lambda f, t: _cut(f / "scenes_sd3_text.safetensors", t), "is not a toy text encoder"),
    "text: a model": (TEXT, lambda f, t: str(f / "scenes_sd3.safetensors"), "it is a toy model"),
    "text: a VAE": (TEXT, lambda f, t: str(host.CHECKPOINTS / "toy_wan_vae.safetensors"), "is not a toy text encoder"),
    "text: not JSON": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", {"toy_text": "{"}), "is not JSON"),
    "text: a list": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", {"toy_text": "[]"}), "not a JSON object"),
    "text: other kind": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", {"toy_text": '{"kind": "bert", "config": {}}'}), "the kind 'bert'"),
    "text: sizes missing": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", {"toy_text": json.dumps(T5 | {"length": None})}), "sizes are incomplete"),
    "text: other sizes": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", {"toy_text": json.dumps(T5)}), "sizes it states"),
    "text: wrong kind": (TEXT, lambda f, t: _rewrite(f / "scenes_sd15_text.safetensors", t / "a", {"toy_text": json.dumps(T5)}), "spiece_model"),
    "t5: tensor missing": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", drop="encoder.block.1.layer.0.SelfAttention.q.weight"), "q.weight is missing"),
    "t5: no words": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", drop="spiece_model"), "spiece_model"),
    "t5: other shape": (TEXT, lambda f, t: _rewrite(f / "scenes_sd3_text.safetensors", t / "a", shape="encoder.block.1.layer.0.SelfAttention.o.weight"), "sizes it states"),
    "clip: tensor missing": (TEXT, lambda f, t: _rewrite(f / "scenes_sd15_text.safetensors", t / "a", drop="encoder.layers.1.mlp.fc2.bias"), "fc2.bias is missing"),
    "clip: no layers": (TEXT, lambda f, t: _rewrite(f / "scenes_sd15_text.safetensors", t / "a", drop="encoder.layers.0.mlp.fc1.weight"), "sizes it states"),
    "unet: absent": (UNET, lambda f, t: str(t / "none.safetensors"), "is not a toy SD1.5 U-Net"),
    "unet: truncated": (UNET, lambda f, t: _cut(f / "scenes_sd15.safetensors", t), "is not a toy SD1.5 U-Net"),
    "unet: SD3": (UNET, lambda f, t: str(f / "scenes_sd3.safetensors"), "UNETLoader"),
    "unet: a text encoder": (UNET, lambda f, t: str(f / "scenes_sd15_text.safetensors"), "no 'toyworld'"),
    "unet: no sizes": (UNET, lambda f, t: _rewrite(f / "scenes_sd15.safetensors", t / "a", {"toyworld": "{}"}), "is not a toy SD1.5 U-Net"),
    "unet: other prediction": (
        UNET,
        lambda f, t: _rewrite(f / "scenes_sd15.safetensors", t / "a", {"toyworld": '{"model": {"model_channels": 64}, "prediction": "v"}'}),
        "predicts 'eps' or 'x0'",
    ),
    "unet: odd sizes": (UNET, lambda f, t: _rewrite(f / "scenes_sd15.safetensors", t / "a", {"toyworld": '{"model": {"model_channels": 64}}'}), "sizes it states"),
    "unet: tensor missing": (UNET, lambda f, t: _rewrite(f / "scenes_sd15.safetensors", t / "a", drop="out.2.bias"), "out.2.bias is missing"),
    "unet: other shape": (UNET, lambda f, t: _rewrite(f / "scenes_sd15.safetensors", t / "a", shape="out.2.weight"), "instead of"),
}


def _cut(source, folder):
    (folder / "cut.safetensors").write_bytes(source.read_bytes()[:3000])
    return str(folder / "cut.safetensors")


@pytest.mark.parametrize("case", BAD)
def test_bad_files_get_one_sentence(folder, tmp_path, case):
    load, make, says = BAD[case]
    path = make(folder, tmp_path)
    with pytest.raises(ValueError, match=says) as error:
        load(path)
    assert "\n" not in str(error.value) and path in str(error.value)


def test_nodes_load_by_name(folder):
    import folder_paths

    for kind in ("text_encoders", "diffusion_models"):
        folder_paths.add_model_folder_path(kind, str(folder))
    unet, text = (comfy_node.NODE_CLASS_MAPPINGS[name] for name in ("ToyWorldUNet", "ToyWorldTextEncoder"))
    assert "scenes_sd15.safetensors" in unet.INPUT_TYPES()["required"]["unet_name"][0]
    assert unet().load("scenes_sd15.safetensors")[0].model.diffusion_model.model_channels == 64
    assert len(text().load("scenes_sd15_text.safetensors")[0].tokenize("a red circle")["l"][0]) == 77


def test_the_pack_never_loads_the_node_folder():
    """Checked in a fresh process: this one has imported it."""
    import subprocess

    code = "import sys, attention_loom.nodes.extension; assert not any('toyworld' in name for name in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(host.comfyui_dir())!r}); sys.argv += ['--cpu']\n{code}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
