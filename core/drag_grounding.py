"""What tells a model where the objects of a dragged picture are: GLIGEN boxes that move, captions in their places, or nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blob import Blob, Edges, Shape
from .drag import Scene
from .errors import LoomError
from .masked_gligen import Boxes, MaskedGligen, check, stand_in
from .texts import single, text_of


def way(asked: str, positive: Any) -> str:
    """ "gligen", "regional text" or "off". Raises LoomError for GLIGEN without a grounded prompt."""
    grounded = any(facts.get("gligen") is not None for _, facts in positive)
    if asked == "gligen" and not grounded:
        raise LoomError("grounding gligen was chosen and the prompt has no GLIGEN boxes; put GLIGEN Textbox Apply behind the text encoder, or choose another grounding.")
    if asked in ("regional text", "off") and grounded:
        raise LoomError(f"grounding {asked} was chosen and the prompt has GLIGEN boxes, which would stay where they are; choose gligen, or connect the prompt without them.")
    return ("gligen" if grounded else "regional text") if asked == "auto" else asked


# --- GLIGEN -----------------------------------------------------------------------------------------------------------


def with_moved_boxes(positive: Any, scene: Scene, shape: Shape, cells: tuple[int, int], widths: list[int], in_batch: bool, masked: bool) -> tuple[Scene, Any]:
    """The scene with the boxes as objects, and the prompt with the dragged one's box moved. cells: (height, width) of the latent; widths: channels of the
    model's transformer layers. Raises LoomError.
    """
    text, facts = single(positive, "positive prompt")
    kind, patcher, params = facts["gligen"]
    stock = patcher.model
    if isinstance(stock, MaskedGligen):
        raise LoomError("the prompt went through a Drag Object node already; connect it as it was before that.")
    check(stock, widths, params)
    height, width = scene.objects[0].frame
    down, right = height / cells[0], width / cells[1]
    boxes = [(x * right, y * down, (x + w) * right, (y + h) * down) for _, h, w, y, x in params]
    scene, order = grounded(boxes, scene, shape)
    dragged = order.index(0)
    left, top, end, bottom = dragged_box(boxes[dragged], scene)
    moved = list(params)
    if (left, top, end, bottom) != boxes[dragged]:
        moved[dragged] = (params[dragged][0], (bottom - top) / down, (end - left) / right, top / down, left / right)
    made = MaskedGligen(stock, scene, order, _parts(params, cells), _parts(moved, cells), in_batch, masked)
    return scene, [[text, facts | {"gligen": (kind, stand_in(patcher, made), moved)}]]


def _parts(params: Any, cells: tuple[int, int]) -> Boxes:
    """Boxes in parts of the picture, by the host's own arithmetic."""
    high, wide = cells
    return tuple((x / wide, y / high, (x + w) / wide, (y + h) / high) for _, h, w, y, x in params)


def grounded(boxes: list[Edges], scene: Scene, shape: Shape) -> tuple[Scene, tuple[int, ...]]:
    """The scene with the boxes of a grounded prompt as its objects, and for each box its place in it.

    The dragged object is the box that overlaps its mask best; it keeps its own region. boxes: in pixels of the mask. Raises LoomError.
    """
    first = scene.objects[0]
    if len(scene.objects) > 1:
        raise LoomError("other objects were given as text, and the prompt is grounded by GLIGEN: its boxes say where they are, so leave the text empty.")
    shares = [_overlap(box, first.edges) for box in boxes]
    best = max(range(len(boxes)), key=lambda i: shares[i])
    if shares[best] < 0.1:
        raise LoomError("no GLIGEN box of the prompt lies on the object's mask; give the object a box with GLIGEN Textbox Apply where it is now.")
    rest = [i for i in range(len(boxes)) if i != best]
    objects = (first, *(Blob.of_edges(boxes[i], first.frame, shape) for i in rest))
    names = (scene.names[0], *(f"GLIGEN box {i + 1}" for i in rest))
    order = {best: 0} | {i: n for n, i in enumerate(rest, 1)}
    return Scene(objects, names, scene.drag), tuple(order[i] for i in range(len(boxes)))


def _overlap(a: Edges, b: Edges) -> float:
    """Common area over the area of both."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, wide) * max(0.0, high)
    both = sum((e[2] - e[0]) * (e[3] - e[1]) for e in (a, b)) - common
    return common / both if both > 0 else 0.0


def dragged_box(box: Edges, scene: Scene) -> Edges:
    """A box of the dragged object after the drag, cut at the picture's edges, in pixels."""
    blob, drag = scene.objects[0], scene.drag
    if (drag.dx, drag.dy, drag.scale) == (0, 0, 1):
        return box
    (u, v), (height, width), s = (blob.x, blob.y), blob.frame, drag.scale
    across = [min(max(u + s * (e - u) + drag.dx, 0.0), float(width)) for e in (box[0], box[2])]
    down = [min(max(v + s * (e - v) + drag.dy, 0.0), float(height)) for e in (box[1], box[3])]
    return across[0], down[0], across[1], down[1]


# --- captions ---------------------------------------------------------------------------------------------------------


def captions(clip: Any, scene: Scene, caption: str) -> tuple[Tensor, ...]:
    """A text [1, M, C] for each object, as the text encoder gives it. Raises LoomError without a caption or an encoder."""
    if not caption.strip():
        raise LoomError("the object has no caption; write what it is, for instance: a red vase. Or set grounding to off.")
    if clip is None:
        raise LoomError("captions need a text encoder; connect the CLIP of this model, or set grounding to off.")
    return tuple(text_of(clip.encode_from_tokens_scheduled(clip.tokenize(name)), f"'{name}'") for name in (caption.strip(), *scene.names[1:]))


def joined(positive: Any, texts: tuple[Tensor, ...]) -> Any:
    """The prompt with the captions behind it, for models that read text and picture in one attention. Raises LoomError."""
    prompt, facts = single(positive, "positive prompt")
    mask = facts.get("attention_mask")
    if mask is not None and not bool((mask > 0).all()):
        raise LoomError("the prompt carries a mask of its padding, which captions behind it would shift; use a model without it, or set grounding to off.")
    rest = {key: value for key, value in facts.items() if key != "attention_mask"}
    text = torch.cat([prompt, *(t.to(prompt).expand(prompt.shape[0], -1, -1) for t in texts)], 1)
    return [[text, rest]]
