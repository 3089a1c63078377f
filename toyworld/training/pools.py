"""Rendered training data: latents in half precision, and the tokens of their captions."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import latent, picture_latent
from ..scenes import Mix, ground, random_scene, render
from . import words

CLIP_SIZE, PICTURE_SIZE = 64, 128
EMPHASIS, EMPHASIS_UNTIL = 8.0, 0.7  # weight of the cells in the objects' boxes, and the share of the steps by which it ends


@dataclass
class Pool:
    """latents [N, C, ...] float16, rows [N, L] of the captions, boxes of the objects (one [things, 4] each, in picture widths) and captions."""

    latents: Tensor
    rows: Tensor
    boxes: list[Tensor]
    captions: list[str]


def make(count: int, seed: int, kind: str, moving: bool, mix: Mix, bare: float = 0.0, loose: float = 0.0, progress: Callable[[str], None] = print) -> Pool:
    """Render `count` clips (64 x 64, native length) or pictures (128 x 128); `kind` is that of the text encoder.

    bare: share of scenes without an object, whose caption is the ground alone: what a text of the background means. loose: share of the others whose
    caption does not say the ground: what a text of an area or of a subject means. Without them such texts paint dark patches.
    """
    rng, emptying, loosening = random.Random(seed), random.Random(f"bare {seed}"), random.Random(f"loose {seed}")  # apart, so that the scenes stay the same
    latents, boxes, captions = None, [], []
    for i in range(count):
        scene = random_scene(rng, moving=moving, mix=mix)
        size, empty, free = CLIP_SIZE if moving else PICTURE_SIZE, emptying.random() < bare, loosening.random() < loose
        frames = ground(scene, size).expand(scene.native if moving else 1, -1, -1, -1) if empty else render(scene, size=size)
        one = latent.encode(frames) if moving else picture_latent.encode(frames[0])
        latents = torch.empty(count, *one.shape, dtype=torch.float16) if latents is None else latents
        latents[i] = one
        boxes.append(scene.boxes(1)[: 0 if empty else None, 0])
        caption = scene.caption
        captions.append(str(caption.ground) if empty else " and ".join(map(str, caption.things)) if free else str(caption))
        if (i + 1) % 5000 == 0:
            progress(f"rendered {i + 1} of {count}")
    assert latents is not None
    return Pool(latents, words.rows_tensor(captions, kind), boxes, captions)


def emphasis(pool: Pool, chosen: Tensor, step: int, steps: int) -> Tensor:
    """Weights [B, 1, h, w], mean 1, of the latent cells of pictures: the objects' boxes count more in the first part of the training.

    What the text says of shapes decides a few cells of many and is learned late. A weight that depends on the picture favours pictures with large
    objects, so the last part, in which the learning rate falls, goes without.
    """
    h, w = pool.latents.shape[-2:]
    weights = torch.ones(len(chosen), 1, h, w)
    if step >= EMPHASIS_UNTIL * steps:
        return weights
    for i, sample in enumerate(chosen.tolist()):
        for left, top, right, bottom in (pool.boxes[sample].clamp(0, 1) * pool.boxes[sample].new_tensor([w, h, w, h])).tolist():
            weights[i, 0, int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = EMPHASIS
    return weights / weights.mean((2, 3), keepdim=True)
