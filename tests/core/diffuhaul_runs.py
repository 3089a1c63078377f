"""DiffUHaul on tiny models: one object that is dragged in a picture, the method on it, and runs of it."""

import tiny_models
import torch
from attention_loom.core.anchoring import Anchoring
from attention_loom.core.blob import Blob
from attention_loom.core.buckets import Buckets
from attention_loom.core.drag import Drag, Scene
from attention_loom.core.methods.diffuhaul import DiffUHaul
from attention_loom.core.methods.sourced import Source

OWNER = DiffUHaul.owner
SIZE = {"sd15": (4, 8, 12), "sdxl": (4, 8, 12), "sd3": (16, 8, 12), "flux": (16, 16, 24), "qwen_image": (16, 1, 16, 24)}
FRAME = (64, 96)
STILL, MOVED = Drag(0, 0), Drag(40, 8)
CUT = Anchoring("constant", end=1.0, level=0.0)
"""Neither anchoring nor copying."""


def scene(drag=MOVED, *others, shape="box"):
    blobs = (Blob.of_edges((8, 16, 40, 48), FRAME, shape), *(Blob.of_edges(e, FRAME, shape) for e in others))
    return Scene(blobs, tuple("abcd"[: len(blobs)]), drag)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(name, batch=1):
    return tiny_models.tiny(name, latent=(batch, *SIZE[name]))


def picture(name, seed=9):
    return draw(1, *SIZE[name], seed=seed)


def method(name, drag=MOVED, latent=None, buckets=0, **settings):
    given = dict(scene=scene(drag), vacate=False, scope="all", source=Source(picture(name) if latent is None else latent, Buckets(buckets)))
    return DiffUHaul(**given | settings)


def run(patcher, model, noise, latent, steps=2, cfg=3.0, **more):
    import comfy.sample

    more = dict(sampler="euler", seed=1) | more
    sampler = more.pop("sampler")
    return comfy.sample.sample(patcher, noise, steps, cfg, sampler, "simple", model.positive, model.negative, latent, disable_pbar=True, **more)
