"""Importance of heads during an ordinary run: at the steps the Inspector reads, extra evaluations with one head pruned each, or one with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..attach import RECORD, attach
from ..errors import LoomError
from ..extra_pass import evaluate_all
from ..families import family_of
from ..methods.inspector import Inspector, Watch
from ..methods.prune import PrunePass, Pruning, no_negative
from ..methods.prune_part import WHOLE
from ..methods.prune_slope import PruneSlope, SlopePass
from ..report import Run
from .importance import GUIDANCE, Pruned, changes, guidance_change, ranked
from .slope import slopes

MODES = ("off", "fast", "screen", "full")
LAYERS = 6
"""Layers whose heads are pruned one by one in mode screen."""
MOST = 5000
"""Evaluations that need no second word from the user."""


@dataclass(frozen=True)
class Probes:
    """What is pruned. layers: (layer, heads); steps: how many are read; mode: "full": every head at every step; "screen": at the first
    step each layer as a whole, then the heads of the six whose pruning changes most; "fast": all heads to first order. spare_memory: what the
    gradient of "fast" needs waits in system memory; guidance: heads are pruned for the negative prompt as well. how:
    the settings, for the study.
    """

    layers: tuple[tuple[int, int], ...]
    steps: int
    mode: str
    spare_memory: bool = False
    guidance: bool = False
    how: Mapping[str, str] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """Of the model, at most; each as long as a step without CFG, with a gradient about three times that."""
        if self.mode == "fast":
            return self.steps
        if self.mode == "full":
            return self.each * self.steps * sum(n for _, n in self.layers)
        return len(self.layers) + self.each * self.steps * sum(sorted((n for _, n in self.layers), reverse=True)[:LAYERS])

    @property
    def each(self) -> int:
        """Evaluations for one head at one step."""
        return 2 if self.guidance else 1


def install(
    model: Any, inspector: Inspector, mode: str, prune: str = "mean", sure: bool = False, spare_memory: bool = False, guidance: bool = False, part: str = WHOLE
) -> Any:  # fmt: skip
    """A clone of ``model``, on which ``inspector`` is already attached, that measures importance as well.

    Raises LoomError where settings do not fit together, and where more than 5000 evaluations would be made and ``sure`` is False: with the estimate.
    """
    if guidance and mode == "fast":
        raise LoomError("importance of the guidance is measured by pruning and importance is 'fast'; choose screen or full, or switch 'guidance' off.")
    diffusion = model.get_model_object("diffusion_model")
    family = family_of(diffusion)
    layers = tuple((b.ordinal, family.heads(diffusion, b)) for b in family.blocks(diffusion) if b in inspector.blocks)
    probes = Probes(layers, len(inspector.percents), mode, spare_memory, guidance, {"importance": mode, "prune": prune if part == WHOLE else "zero", "part": part})
    if probes.evaluations > MOST and not sure:
        raise LoomError(
            f"importance '{mode}' would evaluate the model {probes.evaluations} times ({sum(n for _, n in layers)} heads at {probes.steps} steps), more than {MOST}; choose screen or fast, "
            "fewer steps or blocks, or switch 'sure' on."
        )
    clone = attach(model, PruneSlope(prune, part) if mode == "fast" else Pruning(prune, guidance, part))
    clone.set_model_sampler_post_cfg_function(prober(inspector, probes))
    return clone


def prober(inspector: Inspector, probes: Probes) -> Callable[[dict[str, Any]], Tensor]:
    """A post-CFG function of the host that measures at the steps the Inspector reads, and changes nothing."""

    def post_cfg(args: dict[str, Any]) -> Tensor:
        record = args["model_options"].get("transformer_options", {}).get(RECORD)
        run = None if record is None else record.current
        watch = None if run is None else run.state.get((inspector.owner, id(inspector.into)))
        step = None if watch is None else _reading(watch, float(args["sigma"].max()))
        if run is not None and watch is not None and step is not None:
            watch.study.how = dict(probes.how)
            watch.study.pruned[step] = (_fast if probes.mode == "fast" else _probe)(args, probes, watch, run)
        return args["denoised"]

    return post_cfg


def _reading(watch: Watch, sigma: float) -> int | None:
    """The chosen step that is read at this noise level and was not measured yet."""
    mine = [step for step, level in watch.claimed.items() if level == sigma and step in watch.study.sigmas and step not in watch.study.pruned]
    return max(mine) if mine else None


def _probe(args: dict[str, Any], probes: Probes, watch: Watch, run: Run) -> Pruned:
    import comfy.utils

    study = watch.study
    if not study.layer_importance and probes.mode == "screen":
        for layer, _ in probes.layers:
            study.layer_importance[layer] = _one(args, layer, None, False, run)["importance"]
    best = sorted(study.layer_importance, key=lambda n: (-study.layer_importance[n], n))[:LAYERS]
    chosen = [(layer, h) for layer, heads in probes.layers if probes.mode == "full" or layer in best for h in range(heads)]
    bar = comfy.utils.ProgressBar(len(chosen))
    found: Pruned = {}
    for layer, head in chosen:
        found[layer, head] = _one(args, layer, head, probes.guidance, run)
        bar.update(1)
    study.evaluations += probes.each * len(chosen) + (len(probes.layers) if probes.mode == "screen" and not study.pruned else 0)
    return ranked(found)


def _one(args: dict[str, Any], layer: int, head: int | None, guidance: bool, run: Run) -> dict[str, float]:
    """What pruning does at this step. Raises LoomError where the layer's attention cannot be reached, or there is no negative prompt to ask."""
    if guidance and args["uncond"] is None:
        raise no_negative()
    pass_ = PrunePass(Pruning.owner, heads={layer: head})
    pruned = evaluate_all(pass_, args, ("cond", "uncond") if guidance else ("cond",))
    run.passes[Pruning.owner] += len(pruned)
    if not pass_.touched:
        raise _unreached(layer)
    found = changes(args["cond_denoised"], pruned[0], args["input"])
    if guidance:
        found[GUIDANCE] = guidance_change((args["cond_denoised"], args["uncond_denoised"]), (pruned[0], pruned[1]))
    return found


def _fast(args: dict[str, Any], probes: Probes, watch: Watch, run: Run) -> Pruned:
    """All heads by one evaluation with a gradient. Raises LoomError where a layer's attention cannot be reached."""
    layers = [layer for layer, _ in probes.layers]
    pass_ = SlopePass(PruneSlope.owner, samples=len(args["input"]), layers=frozenset(layers))
    found = slopes(args, pass_, probes.spare_memory)
    run.passes[PruneSlope.owner] += 1
    watch.study.evaluations += 1
    missed = [layer for layer in layers if layer not in pass_.gates]
    if missed:
        raise _unreached(missed[0])
    return found


def _unreached(layer: int) -> LoomError:
    return LoomError(f"layer {layer} could not be pruned: another node replaces its attention or skips it; leave it out with 'blocks', or set importance off.")
