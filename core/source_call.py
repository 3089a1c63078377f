"""A picture that is edited, seen by the model before the result at every noise level, so that its attention features can be read.

Around the host's evaluation of its conditionings: the clean latent is noised to the level of the step (``core/buckets.py``) and evaluated with the
very conditionings the result has; the prediction is not wanted. Samplers, guidance and batches know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .beside import SidePass, notes_key
from .call import step_of
from .errors import LoomError
from .guidance import EXTRA

if TYPE_CHECKING:
    from .methods.sourced import SourcedMethod
    from .report import Run


@dataclass
class _Held:
    """What was read of the source last. bucket: of the steps it holds for; roles: conditionings it was read with."""

    bucket: int = -1
    roles: frozenset[int] = frozenset()
    notes: dict[Any, Any] = field(default_factory=dict)


def with_source(
    method: SourcedMethod, run: Run, progress: float, steps: int, executor: Callable[..., Any], model: Any, conds: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]
) -> Any:
    """One evaluation of all conditionings with the source seen before. options: the host's model options."""
    source = method.source
    assert source is not None
    if options.get("context_handler") is not None:
        raise LoomError(f"{method.owner} cannot work with context windows; take the context window node out.")
    for entries in conds:
        check(method.owner, entries)
    source.buckets.check(max(1, steps))
    own = _without_control(conds) if not method.control else conds
    if not method.needs_source(progress):
        return executor(model, own, x, sigma, options)
    clean = run.kept((*notes_key(method), "clean"), lambda: _clean(method.owner, source.latent, model, x))
    held = run.kept((*notes_key(method), "held"), _Held)
    bucket = source.buckets.number(step_of(progress, steps), max(1, steps))
    roles = run.roles_in(conds)
    if not (source.buckets.held(steps) and held.bucket == bucket and roles <= held.roles):
        held.bucket, held.roles, held.notes = bucket, roles, {}
        _look(method.owner, held.notes, model, conds, _noised(model, clean, source.buckets.noise(bucket, _first(run, x, source.buckets.seed)), sigma[:1]), sigma[:1], options)
        run.passes[method.owner] += 1
    run.state[notes_key(method)] = held.notes
    try:
        return executor(model, own, x, sigma, options)
    finally:
        run.state.pop(notes_key(method), None)
        if not source.buckets.held(steps):
            held.notes = {}


def check(owner: str, entries: Any) -> None:
    """One plain conditioning. Raises LoomError for several, and for one of an area, a mask or a part of the steps."""
    for entry in entries or ():
        for key, what in (("area", "an area"), ("mask", "a mask"), ("timestep_start", "a part of the steps"), ("timestep_end", "a part of the steps")):
            if key in entry:
                raise LoomError(f"{owner} cannot work with a conditioning of {what}; connect the plain prompt.")
    if entries is not None and len(entries) != 1:
        raise LoomError(f"{owner} works with one conditioning for each of positive and negative and was given {len(entries)}; take the Combine nodes out.")


def _without_control(conds: Any) -> Any:
    """A control hint shows the picture as it was, so the result goes without."""
    return [None if entries is None else [{k: v for k, v in e.items() if k != "control"} for e in entries] for entries in conds]


def _clean(owner: str, latent: Tensor, model: Any, x: Tensor) -> Tensor:
    if latent.shape[1:] != x.shape[1:]:
        raise LoomError(
            f"{owner} was given a picture whose latent is {tuple(latent.shape[1:])} and the sampler's is {tuple(x.shape[1:])}; connect the node's own latent to the sampler."
        )
    return model.process_latent_in(latent.to(x))


def _first(run: Run, x: Tensor, seed: int) -> Tensor:
    """The noise the sampler began with, of one picture; where it adds none (a second sampler of a schedule), one by ``seed``."""
    noise = run.noise
    if noise is None or not bool(noise.any()):
        noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(seed % 2**63))
    return noise[:1].to(x)


def _noised(model: Any, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """As the host's sampler begins: pure noise is scaled in another way at the top of the schedule."""
    top, level = float(model.model_sampling.sigma_max), float(sigma[0])
    return model.model_sampling.noise_scaling(sigma, noise.clone(), clean, math.isclose(top, level, rel_tol=1e-05) or level > top)


def _look(owner: str, notes: dict[Any, Any], model: Any, conds: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
    from comfy.samplers import calc_cond_batch

    mark = SidePass(f"{owner}: source", notes=notes)
    marked = dict(options) | {"transformer_options": dict(options.get("transformer_options", {})) | {EXTRA: mark}}
    calc_cond_batch(model, conds, x, sigma, marked)
