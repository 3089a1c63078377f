"""Decoding a clip of any length in constant device memory, without flicker where parts meet.

A video VAE looks at several latent frames to draw one, and most treat the first frame they get as a still. So parts that are simply
decoded one by one flicker at every border. Two ways around it:

* exact: Wan's VAEs decode a latent frame or two at a time and hand features from each to the next. Here they hand them on for the whole
  clip while finished pictures leave the device: the same numbers as one whole decode.
* overlap: every part is decoded with latent frames before and behind it whose pictures are dropped. What is left of the border is
  what the VAE still sees beyond the overlap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import LoomError

METHODS = ("auto", "exact", "overlap")
STREAMED = ("comfy.ldm.wan.vae", "comfy.ldm.wan.vae2_2")
"""Modules of the host whose WanVAE is decoded exactly."""

COUNTS = ("count_conv3d", "count_cache_layers")
"""How such a module counts what a decoder hands on: one latent frame after the other, or in pairs."""


@dataclass(frozen=True)
class Part:
    """Latent frames [first, last) whose pictures are kept, decoded together with [start, end)."""

    start: int
    first: int
    last: int
    end: int


def parts(frames: int, chunk: int, overlap: int) -> list[Part]:
    """A clip of ``frames`` latent frames cut into parts of at most ``chunk`` kept ones."""
    return [Part(max(0, a - overlap), a, min(frames, a + chunk), min(frames, a + chunk + overlap)) for a in range(0, frames, chunk)]


def kept(part: Part, pixels: Callable[[int], int]) -> slice:
    """Which of the part's decoded pictures are kept. pixels(n): pictures that n latent frames make, 0 for none."""
    return slice(pixels(part.first - part.start), pixels(part.last - part.start))


def decode(vae: Any, latent: Tensor, method: str = "auto", chunk: int = 24, overlap: int = 12, progress: Callable[[int, int], None] | None = None) -> tuple[Tensor, str]:
    """(pictures [B F, H, W, 3] in 0..1 on the host's output device, the method used) of a latent [B, C, T, h, w].

    progress(done, all latent frames). Call inside inference mode. Raises LoomError for a latent or VAE that is no video, and for
    "exact" with a VAE that cannot.
    """
    if method not in METHODS:
        raise LoomError(f"method '{method}' was given; choose one of {', '.join(METHODS)}.")
    if latent.ndim != 5 or not isinstance(vae.upscale_ratio, tuple):
        raise LoomError(f"the latent has the shape {tuple(latent.shape)} and the VAE {type(vae.first_stage_model).__name__}; both must be of video. Use VAE Decode for pictures.")
    if chunk < 1 or overlap < 1:
        raise LoomError(f"chunk {chunk} and overlap {overlap} were given; both are 1 or more.")
    exact = can_stream(vae)
    if method == "exact" and not exact:
        raise LoomError(f"{type(vae.first_stage_model).__name__} cannot be decoded frame by frame; choose the method overlap. Wan's own VAEs can.")
    method = "exact" if exact and method != "overlap" else "overlap"
    pieces = _streamed(vae, latent, chunk) if method == "exact" else _overlapping(vae, latent, chunk, overlap)
    out: list[Tensor] = []
    for done, piece in pieces:
        out.append(piece)
        if progress is not None:
            progress(done, latent.shape[2])
    clip = torch.cat(out, 1)
    return clip.reshape(-1, *clip.shape[-3:]), method


def can_stream(vae: Any) -> bool:
    """Whether the VAE is one of Wan's, as this version knows them."""
    model = vae.first_stage_model
    known = type(model).__name__ == "WanVAE" and type(model).__module__ in STREAMED and all(hasattr(model, part) for part in ("conv2", "decoder"))
    return known and any(hasattr(sys.modules[type(model).__module__], count) for count in COUNTS)


def _overlapping(vae: Any, latent: Tensor, chunk: int, overlap: int) -> Iterator[tuple[int, Tensor]]:
    pixels = vae.upscale_ratio[0]
    for part in parts(latent.shape[2], chunk, overlap):
        yield part.last, vae.decode(latent[:, :, part.start : part.end])[:, kept(part, pixels)]


def _streamed(vae: Any, latent: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """Part by part with the features of the last frame handed on. Pictures [B, F, H, W, 3]."""
    from comfy.model_management import load_models_gpu, throw_exception_if_processing_interrupted

    vae.throw_exception_if_invalid()
    load_models_gpu([vae.patcher], memory_required=vae.memory_used_decode(latent[:, :, :chunk].shape, vae.vae_dtype), force_full_load=vae.disable_offload)
    step, group = frame_decoder(vae.first_stage_model)
    starts = starts_of(latent.shape[2], chunk, group)
    for start, end in zip(starts, [*starts[1:], latent.shape[2]], strict=True):
        throw_exception_if_processing_interrupted()
        z = latent[:, :, start:end].to(vae.vae_dtype).to(vae.device)
        out = torch.cat([step(part) for part in z.split(_sizes(start, end, group), 2)], 2)
        yield end, vae.process_output(out.to(vae.output_device).float()).movedim(1, -1)


def starts_of(frames: int, chunk: int, group: int) -> list[int]:
    """First latent frames of parts of at most ``chunk``, or ``group`` if that is more: whole groups behind the first frame, which stands alone."""
    size = max(chunk - chunk % group, group)
    return [0, *range(size - group + 1, frames, size)]


def _sizes(start: int, end: int, group: int) -> list[int]:
    """Lengths of the steps of [start, end)."""
    alone = [1] if start == 0 else []
    left = end - start - len(alone)
    return [*alone, *[group] * (left // group), *([left % group] if left % group else [])]


def frame_decoder(model: Any) -> tuple[Callable[[Tensor], Tensor], int]:
    """(step, group): ``step`` decodes the latent frames of one clip in order, as the host's WanVAE does: [B, C, 1, h, w] first, then
    [B, C, group, h, w] (the last may be shorter) to pixels [B, 3, F, H, W].

    Later hosts than 0.3.75 decode Wan 2.1's in pairs: features of two frames are handed on as they are, so single ones would lose the older.
    """
    module = sys.modules[type(model).__module__]
    single = hasattr(module, COUNTS[0])
    cache: list[Any] = [None] * getattr(module, COUNTS[0] if single else COUNTS[1])(model.decoder)
    unpatch = getattr(module, "unpatchify", None)
    first = True

    def step(z: Tensor) -> Tensor:
        nonlocal first
        begins = {"first_chunk": True} if first and unpatch is not None else {}
        first = False
        out: Tensor | list[Tensor] = model.decoder(model.conv2(z), feat_cache=cache, feat_idx=[0], **begins)
        whole = torch.cat(out, 2) if isinstance(out, list) else out
        return whole if unpatch is None else unpatch(whole, patch_size=2)  # type: ignore[no-any-return]

    return step, 1 if single else 2
