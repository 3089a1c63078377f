"""A tiny CLIP of transformers with random weights, whole: both towers and both projections."""

import torch

SIZE = 32


def reference(act="quick_gelu"):
    """A tiny CLIP of transformers with random weights."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = dict(hidden_size=128, intermediate_size=256, num_attention_heads=2, num_hidden_layers=2, hidden_act=act, eos_token_id=49407, bos_token_id=49406, pad_token_id=49407)
    vision = dict(hidden_size=192, intermediate_size=256, num_attention_heads=3, num_hidden_layers=3, hidden_act=act, image_size=SIZE, patch_size=8)
    with torch.inference_mode(False):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96)).eval().float()
        for p in model.parameters():
            p.data = torch.randn_like(p) * (0.05 if p.ndim > 1 else 0.2) + (1.0 if p.ndim == 1 and p.shape[0] > 1 else 0.0)
            p.data = p.data.half().float()  # as published files hold them, and the host keeps them
        model.logit_scale.data = torch.tensor(3.0)
    return model


def state_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items() if "position_ids" not in name}
