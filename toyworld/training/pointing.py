"""Place words, or boxes, that point: a loss on attention while a U-Net learns what "on the left" means, and its GLIGEN what a box means.

That a word means a place is a product: of where a query stands and of which word a key is. Plain training does not find it (6900 steps left the
prediction the same in the third digit when "left" became "right", although a linear map reads a query's place from it): a place word is one key
of 77, most of them padding, and before it points anywhere nothing is gained by heeding it. This loss shows it where its object is, at noise
levels at which the picture does not show it yet; what the model then makes of the attention is left to the plain loss. 350 steps of it at weight 0.1
were enough: the difference of the two predictions at the highest level grew from below 0.01 to 0.11 (mean over the latent), most of it within 50 steps.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..scenes.grammar import PLACES
from . import words

NAMES = {phrase.split()[-1]: place for place, phrase in PLACES.items()}


def place_tokens(caption: str) -> list[int]:
    """Positions, in CLIP's 77, of the words that name the places of a caption's things, in their order; [] if it names none."""
    found, at = [], 1  # after the start token
    for word in caption.split():
        at += len(words.clip_ids(word))
        if word in NAMES:
            found.append(at - 1)
    return found


def cells_inside(box: Tensor, height: int, width: int) -> Tensor:
    """Whether each cell [height * width] of a map touches a box (left, top, right, bottom) in picture widths."""
    left, top, right, bottom = (box.clamp(0, 1) * box.new_tensor([width, height, width, height])).tolist()
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
    return inside.flatten()


class Pointing:
    """Watches attention layers (the host's: `to_q`, `to_k`, `heads`): `with Pointing(layers) as seen: model(...)`, then `seen.loss(...)`."""

    def __init__(self, layers: list[nn.Module]):
        self.layers = layers
        self.seen: list[dict[str, Tensor]] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> "Pointing":
        self.seen = [{} for _ in self.layers]
        for layer, seen in zip(self.layers, self.seen, strict=True):
            for name in ("to_q", "to_k"):
                self.hooks.append(getattr(layer, name).register_forward_hook(lambda module, args, out, seen=seen, name=name: seen.update({name: out})))
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def loss(self, targets: list[tuple[int, int, Tensor]], shape: tuple[int, int], behind: int = 0) -> Tensor:
        """Mean of -log(share of a key's attention that comes from the cells in its object's box), over layers, heads and targets.

        targets: (sample, key, box in picture widths) each; shape: cells (height, width) of the latent, of which a layer sees a 1/4^k-th. behind: so
        many keys stand behind the picture's own tokens, and are what `key` counts; 0: the keys are the text's.
        """
        samples, keys = torch.tensor([t[:2] for t in targets]).T
        losses = []
        for layer, seen in zip(self.layers, self.seen, strict=True):
            q, k = (seen[name].unflatten(-1, (layer.heads, -1)).transpose(1, 2)[samples].float() for name in ("to_q", "to_k"))
            cells = q.shape[2] - behind
            heed = (q[:, :, :cells] @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[torch.arange(len(keys)), :, :, keys + (cells if behind else 0)]
            scale = (cells / (shape[0] * shape[1])) ** 0.5
            inside = torch.stack([cells_inside(box, round(shape[0] * scale), round(shape[1] * scale)) for *_, box in targets]).to(heed)
            losses.append(-((heed * inside[:, None]).sum(-1) / heed.sum(-1)).clamp(min=1e-6).log())
        return torch.cat([each.flatten() for each in losses]).mean()


def text_readers(unet: nn.Module) -> list[nn.Module]:
    """The cross-attentions of a U-Net."""
    return [module for name, module in unet.named_modules() if name.endswith(".attn2")]
