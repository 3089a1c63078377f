"""Rendered training data: latents in half precision, and the tokens of their captions."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import latent, picture_latent
from ..scenes import Mix, random_scene, render
from . import words

CLIP_SIZE, PICTURE_SIZE = 64, 128


@dataclass
class Pool:
    """latents [N, C, ...] float16, rows [N, L] of the captions, boxes of the objects (one [things, 4] each, in picture widths) and captions."""

    latents: Tensor
    rows: Tensor
    boxes: list[Tensor]
    captions: list[str]


def make(count: int, seed: int, kind: str, moving: bool, mix: Mix, progress: Callable[[str], None] = print) -> Pool:
    """Render `count` clips (64 x 64, native length) or pictures (128 x 128); `kind` is that of the text encoder."""
    rng = random.Random(seed)
    latents, boxes, captions = None, [], []
    for i in range(count):
        scene = random_scene(rng, moving=moving, mix=mix)
        frames = render(scene, size=CLIP_SIZE if moving else PICTURE_SIZE)
        one = latent.encode(frames) if moving else picture_latent.encode(frames[0])
        latents = torch.empty(count, *one.shape, dtype=torch.float16) if latents is None else latents
        latents[i] = one
        boxes.append(scene.boxes(1)[:, 0])
        captions.append(str(scene.caption))
        if (i + 1) % 5000 == 0:
            progress(f"rendered {i + 1} of {count}")
    assert latents is not None
    return Pool(latents, words.rows_tensor(captions, kind), boxes, captions)
