"""References sampled aside: at every noise level the model sees each of them once, before the scene, and what its attention made of them is kept.

For references that are pictures, and for prompts of any length: nothing is put into the sampler's batch. Around the host's evaluation of
its conditionings, so samplers, guidance and batches know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .beside import Beside, SidePass, notes_key
from .errors import LoomError
from .guidance import EXTRA

if TYPE_CHECKING:
    from .methods.referenced import ReferencedMethod
    from .report import Run


@dataclass(frozen=True, eq=False)
class _Ready:
    """latents and noise as the model takes them; conds[role][subject]: prepared conditionings."""

    latents: Tensor
    noise: Tensor
    conds: tuple[list[Any], list[Any]]


def with_references(
    method: ReferencedMethod, run: Run, progress: float, executor: Callable[..., Any], model: Any, conds: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]
) -> Any:
    """One evaluation of all conditionings with the references seen before. options: the host's model options."""
    beside = method.beside
    assert beside is not None
    if options.get("context_handler") is not None:
        raise LoomError(f"{method.owner} cannot work with context windows; take the context window node out.")
    if not method.needs_references(progress):
        return executor(model, conds, x, sigma, options)
    ready = run.kept((*notes_key(method), "ready"), lambda: _prepared(method.owner, beside, model, x))
    notes: dict[Any, Any] = {}
    run.state[notes_key(method)] = notes
    try:
        for role in {min(row, 1) for row in run.roles_in(conds)}:
            for subject in range(len(ready.latents)):
                _look(method.owner, ready, role, subject, notes, model, sigma[:1], options)
        return executor(model, conds, x, sigma, options)
    finally:
        run.state.pop(notes_key(method), None)


def _look(owner: str, ready: _Ready, role: int, subject: int, notes: dict[Any, Any], model: Any, sigma: Tensor, options: dict[str, Any]) -> None:
    """The model on one reference at this noise level; its prediction is not wanted."""
    from comfy.samplers import calc_cond_batch

    mark = SidePass(f"{owner}: references", subject=subject, role=role, notes=notes)
    marked = dict(options) | {"transformer_options": dict(options.get("transformer_options", {})) | {EXTRA: mark}}
    noised = model.model_sampling.noise_scaling(sigma, ready.noise, ready.latents[subject : subject + 1])
    calc_cond_batch(model, [ready.conds[role][subject]], noised, sigma, marked)
    if mark.run is not None:
        mark.run.passes[owner] += 1


def _prepared(owner: str, beside: Beside, model: Any, x: Tensor) -> _Ready:
    """The host's own preparation of conditionings, for each reference by itself."""
    from comfy.sampler_helpers import convert_cond
    from comfy.samplers import process_conds

    if beside.latents.shape[1:] != x.shape[1:]:
        raise LoomError(f"the reference latents for {owner} are {tuple(beside.latents.shape[1:])} and the scene's {tuple(x.shape[1:])}; make them of one size, with one VAE.")
    latents = model.process_latent_in(beside.latents.to(x))
    generator = torch.Generator().manual_seed(beside.seed)
    noise = torch.randn(latents[:1].shape, generator=generator).to(x)
    conds: tuple[list[Any], list[Any]] = ([], [])
    for i, prompt in enumerate(beside.prompts):
        given = {"positive": _free(convert_cond(prompt)), "negative": _free(convert_cond(beside.negative))}
        made = process_conds(model, noise, given, x.device, latent_image=latents[i : i + 1], seed=beside.seed)
        conds[0].append(made["positive"])
        conds[1].append(made["negative"])
    return _Ready(latents, noise, conds)


def _free(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prompts without ControlNets: their hints are of the scene."""
    return [{key: value for key, value in entry.items() if key not in ("control", "control_apply_to_uncond")} for entry in entries]
