"""One model call over frames that stand at different noise levels.

The host's model takes one sigma per batch item. Here it is called with a fixed reference sigma while two wrappers of the call's own
put each frame's own level in: the outer one scales the input and rebuilds the denoised latent frame by frame, the inner one
replaces the timestep by one per frame. Guidance between and above them sees true denoised latents, and everything that is keyed on
sigma (ranged conditionings, hooks, percent windows) sees the median level of the window. U-Nets that take frames as batch rows need
none of this: their batch already has a sigma per item.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..call import QUEUE, QueueWindow
from ..errors import LoomError, UnsupportedModel
from ..frame_rows import FOLDED, LEVELS, ModelCalled, frame_by_frame

TIMES = "loom_frame_times"
"""Key in transformer_options: fp32 [f], the timestep of every frame as the model counts it."""
KEY = "loom_ouroboros"

REFUSED = {
    "VaceWanModel": "its control blocks take one timestep for the whole clip",
    "CameraWanModel": "it takes one timestep for the whole clip",
    "HunyuanVideo": "it takes one timestep for the whole clip",
    "AsymmDiTJoint": "it takes one timestep for the whole clip",
    "GeneralDIT": "it takes one timestep for the whole clip",
}
Conds = dict[str, list[dict[str, Any]]]
KNOWN = "Wan 2.1 or 2.2 (text-to-video or TI2V), LTX-Video, Cosmos Predict2, or Stable Video Diffusion"


# --- which models ---------------------------------------------------------------------------------------------------


def _per_frame(model: Any, x: Tensor, t: Tensor) -> Tensor:
    return t.expand(x.shape[0], -1)


def _per_token(model: Any, x: Tensor, t: Tensor) -> Tensor:
    b, _, f, y, w = x.shape
    return model.patchifier.patchify(t.view(1, 1, f, 1, 1).expand(b, 1, f, y, w))[0]  # type: ignore[no-any-return]


ACCEPTED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {"WanModel": _per_frame, "MiniTrainDIT": _per_frame, "LTXVModel": _per_token}
"""Diffusion-model classes -> (model, x [B, C, f, h, w], t [f]) -> the timesteps as that class takes them."""


def _whole(window: Callable[..., Any], frames: tuple[int, ...]) -> dict[str, int]:
    """Later hosts than 0.3.75 want the length of the clip with a context window; this one has no end, so it is as long as it is by now."""
    return {"total_frames": max(frames) + 1} if "total_frames" in inspect.signature(window).parameters else {}


def frames_are_rows(diffusion: Any) -> bool:
    """Whether frames are batch rows; else they are the third axis. Raises UnsupportedModel for models with one timestep per clip."""
    from ..families.unet import is_video

    name = type(diffusion).__name__
    if name in ACCEPTED:
        if name == "WanModel" and diffusion.patch_size[0] != 1:
            raise UnsupportedModel(f"{name} with patches of {diffusion.patch_size[0]} frames cannot have a timestep per frame; use {KNOWN}.")
        return False
    if name == "UNetModel" and is_video(diffusion):
        return True
    reason = next((REFUSED[c.__name__] for c in type(diffusion).__mro__ if c.__name__ in REFUSED), "it has no timestep per frame")
    raise UnsupportedModel(f"an endless video cannot be made with {name}: {reason}. Use {KNOWN}.")


# --- the wrappers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a model's parametrisation makes its input and its denoised latent: both are affine.

    input = scale(s) x, denoised = keep(s) x + take(s) output. reference: the sigma the host is given.
    """

    sampling: Any
    reference: float = 1.0

    def scale(self, sigma: Tensor) -> Tensor:
        """fp32 [f]."""
        return self.sampling.calculate_input(sigma, _ones(sigma))[:, 0]  # type: ignore[no-any-return]

    def parts(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """keep(s), take(s), fp32 [f] each."""
        ones = _ones(sigma)
        keep = self.sampling.calculate_denoised(sigma, torch.zeros_like(ones), ones)
        take = self.sampling.calculate_denoised(sigma, ones, torch.zeros_like(ones))
        return keep[:, 0], take[:, 0]

    def entering(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B, C, f, H, W] so that the host, believing in ``reference``, hands the model each frame at its own scale."""
        ratio = self.scale(sigma) / self.scale(sigma.new_tensor([self.reference]))
        return x if bool((ratio == 1).all()) else x * _along(ratio, x)

    def leaving(self, x: Tensor, entered: Tensor, out: Tensor, sigma: Tensor) -> Tensor:
        """The denoised latent from what the host made of ``entered`` at ``reference``."""
        keep_ref, take_ref = self.parts(sigma.new_tensor([self.reference]))
        keep, take = self.parts(sigma)
        return _along(keep, x) * x + _along(take / take_ref, x) * (out - float(keep_ref) * entered)


def _ones(sigma: Tensor) -> Tensor:
    return torch.ones(len(sigma), 1, dtype=sigma.dtype, device=sigma.device)


def _along(values: Tensor, x: Tensor) -> Tensor:
    """[f] shaped to multiply [B, C, f, H, W]."""
    return values.view(1, 1, -1, *[1] * (x.ndim - 3)).to(x)


def _apply_model(executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None, transformer_options: Any = None, **extra: Any) -> Tensor:
    options = transformer_options or {}
    sigma: Tensor | None = options.get(LEVELS)
    if sigma is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **extra)  # type: ignore[no-any-return]
    if FOLDED in options:
        raise ModelCalled
    if x.shape[2] != len(sigma):
        raise LoomError(f"a model call got {x.shape[2]} of {len(sigma)} frames of the queue; take conditioning areas over time off the prompts.")
    form = Form(executor.class_obj.model_sampling)
    entered = form.entering(x, sigma)
    out = executor(entered, torch.full_like(t, form.reference), c_concat, c_crossattn, control, options, **extra)
    return form.leaving(x, entered, out, sigma)


def _diffusion_model(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
    options = kwargs.get("transformer_options") or next((a for a in args if isinstance(a, dict)), {})
    times: Tensor | None = options.get(TIMES)
    if times is None:
        return executor(x, t, *args, **kwargs)
    model = executor.class_obj
    return executor(x, ACCEPTED[type(model).__name__](model, x, times.to(t)), *args, **kwargs)


# --- one call -------------------------------------------------------------------------------------------------------


class Frames:
    """Asks a guider for denoised frames at levels of their own. model_options: of the run, left as they are."""

    def __init__(self, guider: Any, model_options: dict[str, Any], seed: Any) -> None:
        import comfy.model_patcher
        import comfy.patcher_extension as extension

        self.guider, self.seed = guider, seed
        self.rows = frames_are_rows(guider.model_patcher.get_model_object("diffusion_model"))
        self.sampling = guider.inner_model.model_sampling
        self.options = comfy.model_patcher.create_model_options_clone(model_options)
        if self.rows:
            return
        for kind, wrapper in ((extension.WrappersMP.APPLY_MODEL, _apply_model), (extension.WrappersMP.DIFFUSION_MODEL, _diffusion_model)):
            extension.add_wrapper_with_key(kind, KEY, wrapper, self.options, is_model_options=True)
        if "sampler_cfg_function" in self.options:
            self.options["sampler_cfg_function"] = frame_by_frame(self.options["sampler_cfg_function"])
        for name in ("sampler_pre_cfg_function", "sampler_post_cfg_function"):
            self.options[name] = [frame_by_frame(function) for function in self.options.get(name, [])]

    def denoised(self, x: Tensor, sigma: Tensor, conds: Conds, frames: tuple[int, ...], queue: QueueWindow | None = None) -> Tensor:
        """x [B, C, f, H, W] with sigma fp32 [f] -> the denoised latent of the same shape, guided as the guider does.

        conds: what its prompts are for this call. frames: absolute frames of the clip, offered as a context window's are. queue: where
        they stand in it.
        """
        options = self.call_options(sigma.to(x.device), frames, queue)
        own, self.guider.conds = self.guider.conds, conds
        try:
            if self.rows:
                return self.guider(x[0].movedim(1, 0), sigma.to(x), model_options=options, seed=self.seed).movedim(0, 1)[None]  # type: ignore[no-any-return]
            return self.guider(x, sigma.median().to(x).expand(x.shape[0]), model_options=options, seed=self.seed)  # type: ignore[no-any-return]
        finally:
            self.guider.conds = own

    def call_options(self, sigma: Tensor, frames: tuple[int, ...], queue: QueueWindow | None) -> dict[str, Any]:
        """The options of one call."""
        from comfy.context_windows import IndexListContextWindow

        options = dict(self.options.get("transformer_options", {}))
        options["context_window"] = IndexListContextWindow(list(frames), 0 if self.rows else 2, **_whole(IndexListContextWindow, frames))
        if not self.rows:
            options |= {LEVELS: sigma, TIMES: self.sampling.timestep(sigma).float()}
        if queue is not None:
            options[QUEUE] = queue
        return dict(self.options) | {"transformer_options": options}
