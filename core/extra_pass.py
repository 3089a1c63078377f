"""The extra model evaluation of a guidance method: run after CFG, marked so that the method acts in it alone.

All other methods act in it as in the main pass. What the sampler evaluates is left as it is: the mark stands in a copy of the
options. Area conditioning, masks, hooks, ControlNets and context windows come along, because the pass is the host's own
evaluation of the positive conditioning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import LoomError
from .families import family_of
from .frame_rows import clip, levels_of, rows
from .guidance import EXTRA, TIMESTEPS, ExtraPass

if TYPE_CHECKING:
    from .methods.extra import GuidanceMethod


def guide(method: GuidanceMethod) -> Callable[[dict[str, Any]], Tensor]:
    """A post-CFG function of the host that adds the guidance of ``method``."""

    def post_cfg(args: dict[str, Any]) -> Tensor:
        model, sigma = args["model"], float(args["sigma"].max())
        w = method.guidance.at(sigma, _timestep(model.model_sampling, args["sigma"]))
        if w == 0 or not method.window.contains(sigma, model.model_sampling.percent_to_sigma):
            return args["denoised"]
        pass_ = ExtraPass(method.only_in)
        extra = evaluate(pass_, args)
        if not pass_.calls:  # no conditioning is active at this step, so there is nothing to push away from
            return args["denoised"]
        _insist(method, model, pass_)
        if pass_.run is not None:
            pass_.run.passes[method.owner] += 1
        parts = [args["denoised"], args["cond_denoised"], None if args["uncond"] is None else args["uncond_denoised"], extra]
        if levels_of(args["model_options"]) is None:
            return method.guidance.join(w, *parts)  # type: ignore[arg-type]
        return clip(method.guidance.join(w, *(rows(part) for part in parts)), len(extra))  # type: ignore[no-any-return]

    post_cfg.whole_window = True  # type: ignore[attr-defined]
    return post_cfg


def evaluate(pass_: ExtraPass, args: dict[str, Any]) -> Tensor:
    """The positive conditioning once more, marked with ``pass_``, which then holds what happened: the denoised latent. args: as the host gives them to post-CFG functions."""
    return evaluate_all(pass_, args, ("cond",))[0]


def evaluate_all(pass_: ExtraPass, args: dict[str, Any], prompts: tuple[str, ...]) -> list[Tensor]:
    """As :func:`evaluate` for several of the conditionings at once. prompts: their names in ``args``, "cond" or "uncond"; one denoised latent each."""
    import comfy.samplers

    return comfy.samplers.calc_cond_batch(args["model"], [args[p] for p in prompts], args["input"], args["sigma"], marked(pass_, args["model_options"]))  # type: ignore[no-any-return]


def marked(pass_: ExtraPass, options: dict[str, Any]) -> dict[str, Any]:
    """A copy of the host's model options whose model calls belong to ``pass_``."""
    return dict(options) | {"transformer_options": dict(options.get("transformer_options", {})) | {EXTRA: pass_}}


def _timestep(sampling: Any, sigma: Tensor) -> float:
    """Place in the training schedule from 999 (noise) to 0, whatever scale the model counts timesteps in."""
    most = sampling.timestep(sampling.sigma_max)
    return (TIMESTEPS - 1) * float(sampling.timestep(sigma.max()).float()) / float(most)


def _insist(method: GuidanceMethod, model: Any, pass_: ExtraPass) -> None:
    """An extra pass that changed nothing is no guidance; one that missed some of its blocks is said in the report."""
    blocks = [b for b in family_of(model.diffusion_model).blocks(model.diffusion_model) if method.reaches(b)]
    missed = [str(b) for b in blocks if b not in pass_.touched]
    if method.reuse and not pass_.reused and pass_.run is not None:
        pass_.run.warn(f"{method.owner}: reuse_prefix took no block over from the main pass: the first block is chosen, or the main pass did not run this prompt")
    if not pass_.touched:
        raise LoomError(
            f"{method.owner} could not change any attention in its extra pass ({', '.join(missed[:4])}{', ...' if len(missed) > 4 else ''}): another node replaces those "
            "blocks' attention, skips them, or a step cache left the model out. Choose other blocks, or take that node out."
        )
    if missed and pass_.run is not None:
        pass_.run.warn(f"{method.owner} did not reach {', '.join(missed)}: another node replaces their attention or skips them")
