"""GLIGEN whose gated self-attention keeps objects to their places: a stand-in for the host's GLIGEN inside a conditioning.

Source: DiffUHaul (arXiv 2406.01594): in the gated self-attention every object token exchanges with all visual tokens, which entangles objects, so
the exchange is cut outside each object's region; GLIGEN is arXiv 2301.07093. Only the outputs of visual tokens are used, so what must be cut
is visual query -> object key; object queries are not computed at all. The null tokens that fill up to thirty objects stay visible as in stock.

The same object serves the source and the result: both have the conditioning's phrases, each its own boxes and regions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import attend
from ..kernels.caching import remembered
from ..kernels.plan import AttentionPlan, Labels
from .beside import SidePass
from .drag import Scene
from .errors import LoomError
from .guidance import EXTRA

MOST = 30
"""Objects of the host's GLIGEN."""
Boxes = tuple[tuple[float, float, float, float], ...]
"""Per object left, top, right, bottom in parts of the picture."""


class MaskedGligen(torch.nn.Module):
    """Shares its modules with the host's own object ``stock``.

    scene: objects and drag; order: for each box of the conditioning its place in the scene. source, result: boxes before and after the drag.
    in_batch: the first picture of the batch is the source; otherwise the source is seen aside. masked: cut the exchange outside the regions.
    """

    def __init__(self, stock: Any, scene: Scene, order: tuple[int, ...], source: Boxes, result: Boxes, in_batch: bool = False, masked: bool = True) -> None:
        super().__init__()
        self.module_list, self.position_net = stock.module_list, stock.position_net
        self.key_dim, self.max_objs = stock.key_dim, stock.max_objs
        self.scene, self.order, self.boxes, self.in_batch, self.masked = scene, order, (source, result), in_batch, masked

    def set_position(self, latent_image_shape: Any, position_params: Any, device: Any) -> Callable[[Tensor, dict[str, Any]], Tensor]:
        """The host calls this before a model call; the result runs between self- and cross-attention of every layer.

        position_params: (pooled phrase [1, C], height, width, y, x) per object; only the phrases are read.
        """
        phrases = [p[0] for p in position_params]
        source, result = (self._tokens(boxes, phrases, latent_image_shape[0], device) for boxes in self.boxes)
        if self.in_batch:
            result = torch.cat([source[:1], result[1:]])

        def patch(x: Tensor, extra_options: dict[str, Any]) -> Tensor:
            aside = isinstance(extra_options.get(EXTRA), SidePass)
            return self._gated(x, source if aside else result, extra_options, aside)

        return patch

    def set_empty(self, latent_image_shape: Any, device: Any) -> Callable[[Tensor, dict[str, Any]], Tensor]:
        """The same without objects: null tokens alone, which nothing is cut from."""
        empty = self._tokens((), [], latent_image_shape[0], device)
        return lambda x, extra_options: self.module_list[extra_options["transformer_index"]](x, empty.to(device=x.device, dtype=x.dtype))

    def _tokens(self, boxes: Boxes, phrases: list[Tensor], batch: int, device: Any) -> Tensor:
        """Object tokens [batch, 30, C]."""
        places, seen, embedded = torch.zeros(1, self.max_objs, 4), torch.zeros(1, self.max_objs), torch.zeros(1, self.max_objs, self.key_dim)
        for i, (box, phrase) in enumerate(zip(boxes, phrases, strict=True)):
            places[0, i], seen[0, i], embedded[0, i] = torch.tensor(box), 1.0, phrase
        return self.position_net(*(part.repeat(batch, *[1] * (part.ndim - 1)).to(device) for part in (places, seen, embedded)))

    def _gated(self, x: Tensor, objects: Tensor, options: dict[str, Any], aside: bool) -> Tensor:
        module = self.module_list[options["transformer_index"]]
        objects = objects.to(device=x.device, dtype=x.dtype)
        y, width = options["activations_shape"][2:]
        labels = self._labels(y, width, len(x), aside, str(x.device)) if self.masked else None
        return module(x, objects) if labels is None else gated(module, x, objects, labels)

    def _labels(self, y: int, x: int, batch: int, aside: bool, device: str) -> Labels | None:
        """None where no pair is cut."""
        sides = ["old"] if aside else ["old", *["new"] * (batch - 1)] if self.in_batch else ["new"]
        made = [_allowed(self.scene, self.order, self.max_objs, y, x, side) for side in sides]
        if all(part is None for part in made):
            return None
        every = torch.full((y * x,), (1 << (self.max_objs + 1)) - 1)
        allow = torch.stack([every if part is None else part for part in made])
        label = torch.cat([torch.zeros(y * x, dtype=torch.int8), torch.arange(1, self.max_objs + 1, dtype=torch.int8)])[None]
        return Labels(label.to(device), allow.to(device), self.max_objs + 1)


@remembered(128)
def _allowed(scene: Scene, order: tuple[int, ...], slots: int, y: int, x: int, side: str) -> Tensor | None:
    """int64 [N]: which keys each visual token reads: bit 0 all visual ones, bit i + 1 object i. None if it is all of them."""
    every = (1 << (slots + 1)) - 1
    allow = torch.full((y * x,), every)
    regions = [getattr(found, side) for found in scene.on(y, x)]
    for i, place in enumerate(order):
        allow = torch.where(regions[place], allow, allow & (every ^ (1 << (i + 1))))
    return None if bool((allow == every).all()) else allow


def gated(module: Any, x: Tensor, objects: Tensor, labels: Labels) -> Tensor:
    """The host's gated self-attention block with some pairs of visual query and object key cut.

    x [B, N, C]; objects [B, n, C']; labels: of N + n keys for N queries.
    """
    attention, visual = module.attn, x.shape[1]
    both = module.norm1(torch.cat([x, module.linear(objects)], 1))
    q, k, v = attention.to_q(both[:, :visual]), attention.to_k(both), attention.to_v(both)
    q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (q, k, v))
    out = attend(q, k, v, AttentionPlan(labels=labels))
    assert isinstance(out, Tensor)
    out = attention.to_out(out.transpose(1, 2).flatten(2))
    x = x + module.scale * torch.tanh(module.alpha_attn) * out
    return x + module.scale * torch.tanh(module.alpha_dense) * module.ff(module.norm2(x))


def check(stock: Any, widths: list[int], params: Any) -> None:
    """Whether a GLIGEN fits a model whose transformer layers have these channels, in order. Raises LoomError."""
    modules = list(stock.module_list)
    fits = len(modules) == len(widths) and all(hasattr(m, "linear") and m.linear.out_features == w for m, w in zip(modules, widths, strict=True))
    if not fits:
        raise LoomError(f"the GLIGEN model has {len(modules)} blocks and this model {len(widths)} layers, or of other widths; GLIGEN works on the model it was made for, SD 1.x.")
    if len(params) > MOST:
        raise LoomError(f"{len(params)} GLIGEN boxes were given and {MOST} fit; take some out.")
    if any(p[0].shape[-1] != stock.key_dim for p in params):
        raise LoomError(f"the GLIGEN phrases have the width {params[0][0].shape[-1]} and the GLIGEN model reads {stock.key_dim}; encode them with the model's own CLIP.")


def stand_in(patcher: Any, made: MaskedGligen) -> Any:
    """A host ModelPatcher that holds ``made`` in place of the GLIGEN in ``patcher``."""
    return type(patcher)(made, load_device=patcher.load_device, offload_device=patcher.offload_device)
