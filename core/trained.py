"""The sizes models were trained at, in tokens of their attention.

The table holds pixels; what they are in tokens is asked of the family adapter with a latent of that size, so patches, padding
and odd sizes are counted by the same code as in a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .errors import LoomError
from .families import family_of
from .families.unet import is_video

Size = tuple[int, int, int]
"""(width, height, frames) in pixels."""
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Trained:
    """Sizes of one model; many: it saw a range of sizes around them (aspect-ratio buckets, several resolutions)."""

    sizes: tuple[Size, ...]
    many: bool = False


def _square(side: int, many: bool = False) -> Trained:
    return Trained(((side, side, 1),), many)


TABLE = {
    **dict.fromkeys(("SD15", "SD15_instructpix2pix"), _square(512)),
    **dict.fromkeys(("SDXL", "SDXL_instructpix2pix", "SDXLRefiner", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"), _square(1024, many=True)),
    "SVD_img2vid": Trained(((1024, 576, 14), (1024, 576, 25))),
    "SD3": _square(1024),
    **dict.fromkeys(("Flux", "FluxInpaint", "FluxSchnell", "LongCatImage", "Lumina2", "ZImage", "HiDream", "Omnigen2", "AuraFlow"), _square(1024, many=True)),
    "QwenImage": _square(1328, many=True),
}
"""By the name of the host's configuration class. Wan and SD 2 need a closer look, see :func:`known`."""

WAN = frozenset({"WAN21_T2V", "WAN21_I2V", "WAN21_FunControl2V", "WAN21_Camera", "WAN22_Camera", "WAN21_Vace"})
WAN_SIZES = {1536: Trained(((832, 480, 81),)), 5120: Trained(((832, 480, 81), (1280, 720, 81)))}
"""By channels: 1.3B and 14B. Nothing in the files tells the 480p from the 720p checkpoints, so the nearer size counts."""

STRIDES = {
    "Wan21": (8, 4), "Wan22": (16, 4), "HunyuanVideo": (8, 4), "HunyuanVideo15": (16, 4), "HunyuanImage21": (32, 1), "LTXV": (32, 8),
    "Mochi": (8, 6), "Cosmos1CV8x8x8": (8, 8), "Flux2": (16, 1), "ChromaRadiance": (1, 1),
}  # fmt: skip
"""(pixels per latent pixel, frames per latent frame) by the host's latent format. Of others later hosts tell; on 0.3.75 they are pictures at 8."""


def frame_stride(model: Any) -> int:
    """Frames of the clip for each latent frame but the first, of a host ModelPatcher's model; 1 for pictures."""
    return _strides(model)[1]


def token_stride(model: Any) -> int:
    """Frames of the clip for each row of tokens in time but the first."""
    diffusion = model.get_model_object("diffusion_model")
    return frame_stride(model) * family_of(diffusion).frames_per_token(diffusion)


def _strides(model: Any) -> tuple[int, int]:
    latent = model.model.latent_format
    listed = next((STRIDES[c.__name__] for c in type(latent).__mro__ if c.__name__ in STRIDES), None)
    return listed or (getattr(latent, "spacial_downscale_ratio", 8), getattr(latent, "temporal_downscale_ratio", 1))


def known(model: Any) -> Trained | None:
    """The sizes of a host ModelPatcher's model, or None."""
    base = model.model
    name = type(base.model_config).__name__
    if name in WAN:
        return WAN_SIZES.get(getattr(base.diffusion_model, "dim", 0))
    if name == "SD20":
        # the host reads from the weights whether it is the 768 pixel model, which predicts v
        return _square(768 if "V_PREDICTION" in str(base.model_type) else 512)
    return TABLE.get(name)


def trained_grids(model: Any, width: int = 0, height: int = 0, frames: int = 0) -> tuple[tuple[Grid, ...], bool]:
    """((T, Y, X) in tokens of each trained size, whether the model saw a range around them). For U-Nets in latent pixels.

    width, height, frames: the user's own in pixels and pixel frames, 0 = from the table. Raises LoomError where neither knows.
    """
    for label, value in (("train_width", width), ("train_height", height), ("train_frames", frames)):
        if value < 0:
            raise LoomError(f"{label} {value} was given; give the size the model was trained at in pixels (frames for train_frames), or 0 for the built-in table.")
    if bool(width) != bool(height):
        raise LoomError(f"train_width {width} and train_height {height} were given; give both, or 0 for both to take them from the built-in table.")
    table = known(model)
    video = _takes_video(model)
    if table is None and (not width or (video and not frames)):
        what = "train_width, train_height" + (" and train_frames" if video else "")
        raise LoomError(f"the trained size of {type(model.model.model_config).__name__} is not in the table; set {what} (the size in pixels of the pictures it was trained on).")
    sizes = ((width, height, frames),) if table is None else tuple(dict.fromkeys((width or w, height or h, frames or f) for w, h, f in table.sizes))
    return tuple(_grid(model, size, video) for size in sizes), table is not None and table.many and not width


def _takes_video(model: Any) -> bool:
    diffusion = model.model.diffusion_model
    family = family_of(diffusion)
    return family.video or (family.name == "SD 1.5 / SDXL" and is_video(diffusion))


def _grid(model: Any, size: Size, video: bool) -> Grid:
    base = model.model
    form = base.latent_format
    width, height, frames = size
    pixels, per_latent = _strides(model)
    y, x, t = height // pixels, width // pixels, (max(1, frames) - 1) // per_latent + 1 if video else 1
    if not y or not x:
        raise LoomError(f"a trained size of {width} x {height} was given, which is less than one token of {pixels} pixels; give the size in pixels.")
    family = family_of(base.diffusion_model)
    batch, time = ((t,), ()) if form.latent_dimensions < 3 else ((1,), (t,))
    latent = torch.empty((*batch, form.latent_channels, *time, y, x), device="meta")
    return family.geometry(base.diffusion_model, latent, None, {"num_video_frames": t}).grid
