"""Text encoders that learn together with a model: the host's own T5 and CLIP classes, small.

Words alone cannot say whose colour is whose, so an encoder needs attention: two blocks that let every word see its neighbours. The host's
forward passes add in place, which autograd forbids, so the blocks are walked here in the same order; a test compares both.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..host import load_host
from . import words

T5_WIDTH = 256  # of the trained encoder; its file is widened with zeros to the 4096 that the models' loaders expect
T5 = dict(
    d_model=T5_WIDTH, d_ff=256, d_kv=32, num_heads=4, num_layers=2, dense_act_fn="gelu_pytorch_tanh", is_gated_act=True, model_type="umt5", vocab_size=len(words.ROWS),
)  # fmt: skip
CLIP = dict(hidden_size=128, intermediate_size=384, num_attention_heads=4, num_hidden_layers=2, hidden_act="quick_gelu", max_position_embeddings=77, eos_token_id=49407)


class T5Tower(nn.Module):
    """Rows [B, LENGTH] -> context [B, LENGTH, 256], zero after </s>, as ComfyUI's Wan text encoder gives it."""

    kind = "t5"

    def __init__(self):
        super().__init__()
        load_host()
        import comfy.ops
        import comfy.text_encoders.t5

        self.t5 = comfy.text_encoders.t5.T5(T5, torch.float32, "cpu", comfy.ops.disable_weight_init)
        for name, weight in self.t5.named_parameters():
            if name.endswith("layer_norm.weight"):
                nn.init.ones_(weight)
            elif "relative_attention_bias" in name:
                nn.init.normal_(weight, std=0.5)
            elif name.endswith("SelfAttention.q.weight"):
                nn.init.normal_(weight, std=(T5["d_model"] * T5["d_kv"]) ** -0.5)  # T5 does not divide its logits by sqrt(d)
            elif name == "shared.weight":
                nn.init.normal_(weight)
            else:
                nn.init.xavier_uniform_(weight)

    def forward(self, rows: Tensor) -> Tensor:
        keep = rows < len(words.ROWS)
        x = self.t5.shared.weight[rows.clamp(max=len(words.ROWS) - 1)]
        mask = torch.where(keep[:, None, None], 0.0, -1e9)
        for block in self.t5.encoder.block:
            attention, feed = block.layer
            x = x + attention.SelfAttention(attention.layer_norm(x), mask=mask, optimized_attention=_attend)[0]
            x = x + feed.DenseReluDense(feed.layer_norm(x))
        return self.t5.encoder.final_layer_norm(x) * keep[..., None]


class ClipTower(nn.Module):
    """Rows [B, 77] -> context [B, 77, 128], causal, with the final norm, as SD1.5's text encoder gives it."""

    kind = "clip"

    def __init__(self):
        super().__init__()
        load_host()
        import comfy.clip_model
        import comfy.ops

        self.clip = comfy.clip_model.CLIPTextModel_(CLIP, torch.float32, "cpu", comfy.ops.disable_weight_init)
        # The host's class always holds 49,408 tokens; captions use a few dozen of them.
        self.clip.embeddings.token_embedding = nn.Embedding(len(words.clip_vocabulary()), CLIP["hidden_size"])
        for name, weight in self.clip.named_parameters():
            if "norm" in name:
                nn.init.constant_(weight, 1.0 if name.endswith("weight") else 0.0)
            elif "embedding" in name:
                nn.init.normal_(weight, std=0.5 if "position" in name else 1.0)
            elif weight.ndim == 2:
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.zeros_(weight)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.clip.embeddings.token_embedding(rows) + self.clip.embeddings.position_embedding.weight
        mask = torch.full((rows.shape[1], rows.shape[1]), -1e9, device=x.device).triu(1)
        for layer in self.clip.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), mask, _attend)
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.clip.final_layer_norm(x)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v on [B, N, heads * d], the signature of the host's attention."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
