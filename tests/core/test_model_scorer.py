"""Prompt match and aesthetic by a CLIP file: against transformers' own CLIP, both file layouts, published sizes, and what is refused."""

import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.hunt.clip import Aesthetic, PromptMatch, Towers, _sizes
from attention_loom.core.hunt.scorers import Shot
from tiny_clip import SIZE, reference, state_of

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


def truth(model, images, prompt):
    from comfy.sd1_clip import SDTokenizer

    ids = SDTokenizer().tokenizer(prompt)["input_ids"]
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    pixels = ((255 * images).round() / 255).movedim(-1, 1)
    return float(model(input_ids=torch.tensor([ids]), pixel_values=(pixels - mean) / std).logits_per_image.mean())


def pictures(n=2):
    return torch.rand(n, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))


def open_clip(state):
    """The same weights under open_clip's names."""
    out, rest = {}, dict(state)
    for tower, to in (("text_model", ""), ("vision_model", "visual.")):
        layers = {k.split(".")[3] for k in rest if k.startswith(f"{tower}.encoder.layers.")}
        for n in layers:
            at, block = f"{tower}.encoder.layers.{n}.", f"{to}transformer.resblocks.{n}."
            for kind in ("weight", "bias"):
                out[f"{block}attn.in_proj_{kind}"] = torch.cat([rest.pop(f"{at}self_attn.{x}_proj.{kind}") for x in "qkv"])
                for ours, theirs in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                    out[f"{block}{theirs}.{kind}"] = rest.pop(f"{at}{ours}.{kind}")
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "logit_scale": "logit_scale",
    }
    for kind in ("weight", "bias"):
        names |= {f"text_model.final_layer_norm.{kind}": f"ln_final.{kind}", f"vision_model.pre_layrnorm.{kind}": f"visual.ln_pre.{kind}"}
        names |= {f"vision_model.post_layernorm.{kind}": f"visual.ln_post.{kind}"}
    out |= {names[k]: rest.pop(k) for k in list(rest) if k in names}
    out["text_projection"], out["visual.proj"] = (rest.pop(f"{x}_projection.weight").T for x in ("text", "visual"))
    assert not rest
    return out


@pytest.mark.parametrize(("act", "layout"), [("quick_gelu", "transformers"), ("gelu", "transformers"), ("quick_gelu", "open_clip")])
def test_prompt_match_is_transformers_own(act, layout):
    model = reference(act)
    state = state_of(model) if layout == "transformers" else open_clip(state_of(model))
    towers = Towers(state, "clip.safetensors", act)
    for prompt in ("a red bicycle (beside) a blue door", "two cats"):
        found = PromptMatch(towers, "A photo depicts").score(Shot(pictures(), prompt))
        assert found == pytest.approx(truth(model, pictures(), f"A photo depicts {prompt}"), abs=1e-4)
    assert abs(truth(model, pictures(), "two cats") - truth(model, pictures(), "a red bicycle")) > 0.05, "a constant would pass"


def test_activation_is_guessed_by_size_and_changes_the_score():
    small = Towers(state_of(reference()), "clip")
    shot = Shot(pictures(), "two cats")
    assert PromptMatch(small).score(shot) == PromptMatch(Towers(state_of(reference()), "clip", "quick_gelu")).score(shot)
    other = PromptMatch(Towers(state_of(reference()), "clip", "gelu"))
    assert PromptMatch(small).score(shot) != other.score(shot)
    assert PromptMatch(small).key != other.key, "remembered scores would be mixed up"


def test_heads_of_published_models():
    """Text and vision width -> heads, as their configurations say: B/32, L/14, H/14, bigG/14."""
    for text, vision, heads in ((512, 768, (8, 12)), (768, 1024, (12, 16)), (1024, 1280, (16, 16)), (1280, 1664, (20, 16))):
        state = {
            f"{tower}.encoder.layers.{n}.mlp.fc1.weight": torch.empty(4 * width, width, device="meta")
            for tower, width in (("text_model", text), ("vision_model", vision))
            for n in range(3)
        }
        found = [_sizes(state, tower) for tower in ("text_model", "vision_model")]
        assert tuple(s["num_attention_heads"] for s in found) == heads
        assert all(s["num_hidden_layers"] == 3 for s in found)


def test_long_prompts_are_cut_and_said(caplog):
    towers = Towers(state_of(reference()), "my clip")
    long = " ".join(["cat"] * 90)
    with caplog.at_level("WARNING"):
        cut = towers.read(long)
    assert "my clip reads 75 tokens of a prompt, and this one has 90" in caplog.text
    assert torch.equal(cut, towers.read(" ".join(["cat"] * 75)))
    assert not torch.equal(cut, towers.read(" ".join(["cat"] * 74)))


def head(width=96, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = ((0, width, 24), (2, 24, 8), (4, 8, 1))
    return {f"layers.{n}.{kind}": torch.randn(*((b, a) if kind == "weight" else (b,)), generator=g) for n, a, b in sizes for kind in ("weight", "bias")}


def test_aesthetic_is_the_linear_layers_on_the_normalised_embedding():
    model, state = reference(), head()
    towers = Towers(state_of(model), "clip")
    images = pictures(3)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    pixels = (((255 * images).round() / 255).movedim(-1, 1) - mean) / std
    x = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    x = x / x.norm(dim=-1, keepdim=True)
    for n in (0, 2, 4):
        x = x @ state[f"layers.{n}.weight"].T + state[f"layers.{n}.bias"]
    assert Aesthetic.of(towers, state, "head").score(Shot(images, "")) == pytest.approx(float(x.mean()), abs=1e-3)
    assert Aesthetic.of(towers, state, "head").key != Aesthetic.of(towers, head(seed=1), "head").key


def test_what_cannot_judge_is_refused():
    state = state_of(reference())
    vision_only = {k: v for k, v in state.items() if not k.startswith("text")}
    with pytest.raises(LoomError, match="'vision.safetensors' has no text_model.embeddings.token_embedding.weight; a judge of prompts needs one CLIP file with both towers"):
        Towers(vision_only, "vision.safetensors")
    with pytest.raises(LoomError, match=r"has no encoder.layers.1.mlp.fc2.bias|has no text_model.encoder.layers.1.mlp.fc2.bias; the file is damaged"):
        Towers({k: v for k, v in state.items() if k != "text_model.encoder.layers.1.mlp.fc2.bias"}, "clip")
    towers = Towers(state, "clip")
    with pytest.raises(LoomError, match="the search knows no text; write 'prompts' and connect clip"):
        PromptMatch(towers).score(Shot(pictures(), " "))
    with pytest.raises(LoomError, match="reads embeddings of 64, and 'clip' makes 96; choose the CLIP file it was trained with"):
        Aesthetic.of(towers, head(64), "head")
    with pytest.raises(LoomError, match="'x' is no aesthetic head"):
        Aesthetic.of(towers, {"weight": torch.zeros(1)}, "x")


@pytest.fixture
def node(monkeypatch, tmp_path):
    import folder_paths
    from attention_loom.nodes import model_scorer
    from safetensors.torch import save_file

    save_file(state_of(reference()), tmp_path / "clip.safetensors")
    save_file(head(), tmp_path / "head.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(tmp_path)], {".safetensors"}))
    return model_scorer


def test_the_node_reads_files_and_joins_scorers(node):
    schema = node.LoomModelScorer.define_schema()
    assert schema.inputs[0].options == ["clip.safetensors", "head.safetensors"]
    assert all(len(item.tooltip or "") > 20 for item in (*schema.inputs, *schema.outputs))
    shot = Shot(pictures(), "two cats")
    match = node.LoomModelScorer.execute("clip.safetensors", "prompt match", 1.0).result[0]
    assert node.scorer("clip.safetensors", "prompt match").towers is match.towers is not node.scorer("clip.safetensors", "prompt match", activation="gelu").towers
    looks = node.scorer("clip.safetensors", "aesthetic", head="head.safetensors", plus=match, weight=2.0)
    alone = node.scorer("clip.safetensors", "aesthetic", head="head.safetensors")
    assert looks.score(shot) == pytest.approx(2 * alone.score(shot) + match.score(shot))
    assert looks.name == "2 x aesthetic by head.safetensors + prompt match by clip.safetensors"
    with pytest.raises(LoomError, match="measure 'aesthetic' was given with head 'none'; aesthetic needs the file of its head"):
        node.scorer("clip.safetensors", "aesthetic")
    with pytest.raises(LoomError, match="measure 'beauty' was given"):
        node.scorer("clip.safetensors", "beauty")
    with pytest.raises(LoomError, match="weight 0 was given"):
        node.scorer("clip.safetensors", "prompt match", 0.0)
