"""A whole CLIP file as a judge: how well a picture fits its prompt, and LAION's aesthetic head on its pictures.

    prompt match  exp(t) cos(image, text): CLIPScore (Hessel et al., arXiv 2104.08718: 40 times its 2.5 cos, not cut at 0), PickScore
                  (Kirstain et al., arXiv 2305.01569), HPS v2 (Wu et al., arXiv 2306.09341), whichever weights the file holds
    aesthetic     the linear layers of LAION's "improved aesthetic predictor" on the normalised image embedding, 1 to 10

Both towers, both projections and the temperature t come from one file, so that they were trained together: a checkpoint's text encoder need not have
the projection of its vision counterpart. Sizes are read from the tensors; the modules are the host's own.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LoomError
from .scorers import Scorer, Shot

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

TOKENS, START, END = 77, 49406, 49407
ACTIVATIONS = ("auto", "quick_gelu", "gelu")
BOTH = ("text_model.embeddings.token_embedding.weight", "text_projection.weight", "vision_model.embeddings.patch_embedding.weight", "visual_projection.weight", "logit_scale")
"""One tensor of each part a file must have, in the names of transformers."""


class Towers:
    """Text and vision encoder of one CLIP file. activation: one of ACTIVATIONS; the files do not say it.

    state: tensors in the names of transformers or of open_clip; name: of the file, for messages. Raises LoomError for a file that lacks a part.
    """

    def __init__(self, state: Mapping[str, Tensor], name: str, activation: str = "auto"):
        import comfy.clip_model
        import comfy.model_management as management
        import comfy.model_patcher
        import comfy.ops
        import comfy.sd1_clip

        state = _of_transformers(dict(state))
        missing = [part for part in BOTH if part not in state]
        if missing:
            raise LoomError(
                f"'{name}' has no {missing[0]}; a judge of prompts needs one CLIP file with both towers and both projections (for instance the model.safetensors of "
                "clip-vit-large-patch14, CLIP-ViT-H-14, PickScore_v1 or HPSv2), put into models/clip_vision."
            )
        self.name = name
        text, vision = _sizes(state, "text_model"), _sizes(state, "vision_model")
        patches = state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
        patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
        self.size = round(patches**0.5) * patch
        chosen = ("quick_gelu" if text["hidden_size"] < 1024 else "gelu") if activation == "auto" else activation
        self.key = f"{_digest(state)} {chosen}"
        self.device = management.text_encoder_device()
        how = management.text_encoder_dtype(self.device), management.text_encoder_offload_device(), comfy.ops.manual_cast
        self.text = comfy.clip_model.CLIPTextModel(text | {"hidden_act": chosen, "max_position_embeddings": TOKENS, "eos_token_id": END}, *how)
        out = state["text_projection.weight"].shape[0]
        self.text.text_projection = comfy.ops.manual_cast.Linear(text["hidden_size"], out, bias=False, dtype=how[0], device=how[1])  # the host's is square
        self.vision = comfy.clip_model.CLIPVisionModelProjection(
            vision | {"hidden_act": chosen, "image_size": self.size, "patch_size": patch, "num_channels": 3, "model_type": "clip_vision_model", "projection_dim": out}, *how
        )
        both = torch.nn.ModuleDict({"text": self.text, "vision": self.vision}).eval()
        for tower in (self.text, self.vision):
            lost = tower.load_state_dict({k: v for k, v in state.items() if k in tower.state_dict()}, strict=False).missing_keys
            if lost:
                raise LoomError(f"'{name}' has no {lost[0]}; the file is damaged, or not of a CLIP model.")
        self.temperature = float(state["logit_scale"].float().exp())
        self.tokenizer = comfy.sd1_clip.SDTokenizer().tokenizer
        self.patcher = comfy.model_patcher.ModelPatcher(both, self.device, management.text_encoder_offload_device())

    @property
    def width(self) -> int:
        """Of both embeddings."""
        return int(self.text.text_projection.weight.shape[0])

    def see(self, images: Tensor) -> Tensor:
        """Normalised embeddings fp32 [N, width] of images [N, h, w, 3] in 0..1, each resized and cropped to the middle square."""
        import comfy.clip_vision
        import comfy.model_management as management

        with torch.inference_mode():
            management.load_model_gpu(self.patcher)
            pixels = comfy.clip_vision.clip_preprocess(images.to(self.device), size=self.size).float()
            return F.normalize(self.vision(pixel_values=pixels)[2].float().cpu(), dim=-1)

    def read(self, prompt: str) -> Tensor:
        """Normalised embedding fp32 [width]; of a longer prompt the first 75 tokens."""
        import comfy.model_management as management

        inner = self.tokenizer(prompt)["input_ids"][1:-1]
        if len(inner) > TOKENS - 2:
            log.warning("%s reads 75 tokens of a prompt, and this one has %d: %s", self.name, len(inner), prompt)
        ids = [START, *inner[: TOKENS - 2], END]
        with torch.inference_mode():
            management.load_model_gpu(self.patcher)
            tokens = torch.tensor([ids + [END] * (TOKENS - len(ids))], device=self.device)
            return F.normalize(self.text(tokens)[2][0].float().cpu(), dim=-1)


@dataclass(frozen=True, eq=False)
class PromptMatch(Scorer):
    """exp(t) times the cosine of picture and prompt, mean over images. before: stands in front of each prompt ("A photo depicts" in CLIPScore's paper)."""

    towers: Towers
    before: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]
        """With the file's."""
        return f"prompt match by {self.towers.name}"

    @property
    def key(self) -> str:  # type: ignore[override]
        """Of the weights and the words in front."""
        return f"prompt match {self.towers.key} {self.before}"

    def score(self, shot: Shot) -> float:
        """Raises LoomError where the prompt is not known."""
        if not shot.prompt.strip():
            raise LoomError("prompt match compares pictures with their prompts, and the search knows no text; write 'prompts' and connect clip in Find Guidance Heads.")
        text = self.towers.read(f"{self.before} {shot.prompt}".strip())
        return self.towers.temperature * float((self.towers.see(shot.images) @ text).mean())


@dataclass(frozen=True, eq=False)
class Aesthetic(Scorer):
    """LAION's aesthetic head on the embedding of its CLIP (ViT-L/14). layers: (weight, bias) in order."""

    towers: Towers
    layers: tuple[tuple[Tensor, Tensor], ...]
    name: str = "aesthetic"

    @staticmethod
    def of(towers: Towers, state: Mapping[str, Tensor], name: str) -> Aesthetic:
        """state: of the head's file, `layers.N.weight` and `.bias`. Raises LoomError where it is none, or made for another width."""
        numbers = sorted(int(k.split(".")[1]) for k in state if k.startswith("layers.") and k.endswith(".weight"))
        layers = tuple((state[f"layers.{n}.weight"].float(), state[f"layers.{n}.bias"].float()) for n in numbers)
        if not layers or layers[-1][0].shape[0] != 1:
            raise LoomError(f"'{name}' is no aesthetic head: it should have layers.0.weight and on, the last with one output (for instance sac+logos+ava1-l14-linearMSE).")
        if layers[0][0].shape[1] != towers.width:
            raise LoomError(
                f"the aesthetic head '{name}' reads embeddings of {layers[0][0].shape[1]}, and '{towers.name}' makes {towers.width}; choose the CLIP file it was trained with."
            )
        return Aesthetic(towers, layers, f"aesthetic by {name}")

    @property
    def key(self) -> str:  # type: ignore[override]
        """Of both files."""
        return f"aesthetic {self.towers.key} {_digest({str(n): w for n, (w, _) in enumerate(self.layers)})}"

    def score(self, shot: Shot) -> float:
        """About 1 to 10, mean over images."""
        x = self.towers.see(shot.images)
        for weight, bias in self.layers:  # dropouts stand between them in training, nothing else
            x = F.linear(x, weight, bias)
        return float(x.mean())


def _of_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names become those of transformers; others stay."""
    import comfy.clip_vision
    import comfy.utils

    if "visual.transformer.resblocks.0.attn.in_proj_weight" not in state:
        return state
    return comfy.utils.clip_text_transformers_convert(comfy.clip_vision.convert_to_transformers(state, "visual."), "", "")  # type: ignore[no-any-return]


def _sizes(state: dict[str, Tensor], tower: str) -> dict[str, Any]:
    """The host's configuration of a tower. Heads are 64 wide in every published text tower; large vision towers have sixteen."""
    mlp, width = state[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    heads = 16 if tower == "vision_model" and width >= 1024 else width // 64
    layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith(f"{tower}.encoder.layers."))
    return {"hidden_size": width, "intermediate_size": mlp, "num_attention_heads": heads, "num_hidden_layers": layers}


def _digest(state: Mapping[str, Tensor]) -> str:
    """Of a few tensors, so that other weights are another scorer."""
    found = hashlib.sha256()
    for name in sorted(state)[:: max(1, len(state) // 8)]:
        found.update(name.encode() + state[name].detach().float().cpu().flatten()[:4096].numpy().tobytes())
    return found.hexdigest()[:16]
