"""Importance of heads during an ordinary run: at the steps the Inspector reads, extra evaluations with one head pruned each, or one with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ..attach import RECORD, attach
from ..errors import LoomError
from ..extra_pass import evaluate_all
from ..families import family_of
from ..methods.inspector import Inspector, Watch
from ..methods.prune import PrunePass, Pruning, no_negative
from ..methods.prune_part import WHOLE, WORDS
from ..methods.prune_slope import PruneSlope, SlopePass
from ..relay import Relay
from ..report import Run
from .importance import GUIDANCE, Pruned, changes, guidance_change, ranked
from .slope import slopes
from .study import Study

MODES = ("off", "fast", "screen", "full")
LAYERS = 6
"""Layers whose heads are pruned one by one in mode screen."""
MOST = 5000
"""Evaluations that need no second word from the user."""


@dataclass(frozen=True)
class Probes:
    """What is pruned. layers: (layer, heads); steps: how many are read; mode: "full": every head at every step; "screen": at the first
    step each layer as a whole, then the heads of the six whose pruning changes most; "fast": all heads to first order. spare_memory: what the
    gradient of "fast" needs waits in system memory; guidance: heads are pruned for the negative prompt as well; reuse:
    the blocks before a pruned layer are computed once. how: the settings, for the study.
    """

    layers: tuple[tuple[int, int], ...]
    steps: int
    mode: str
    spare_memory: bool = False
    guidance: bool = False
    reuse: bool = False
    how: Mapping[str, str] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """Of the model, at most; each as long as a step without CFG, with gradients about 33 times that (a pass and 16 backward passes)."""
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
    model: Any, inspector: Inspector, mode: str, prune: str = "mean", sure: bool = False, spare_memory: bool = False, guidance: bool = False, part: str = WHOLE,
    reuse_prefix: bool = False,
) -> Any:  # fmt: skip
    """A clone of ``model``, on which ``inspector`` is already attached, that measures importance as well.

    Raises LoomError where settings do not fit together, and where more than 5000 evaluations would be made and ``sure`` is False: with the estimate.
    """
    if guidance and mode == "fast":
        raise LoomError("importance of the guidance is measured by pruning and importance is 'fast'; choose screen or full, or switch 'guidance' off.")
    if reuse_prefix and mode == "fast":
        raise LoomError("reuse_prefix is for heads pruned one by one and importance is 'fast'; choose screen or full, or switch reuse_prefix off.")
    diffusion = model.get_model_object("diffusion_model")
    family = family_of(diffusion)
    if reuse_prefix and not family.whole_blocks:
        raise LoomError(f"reuse_prefix hands whole blocks on, which {family.name} does not allow; switch it off.")
    layers = tuple((b.ordinal, family.heads(diffusion, b)) for b in family.blocks(diffusion) if b in inspector.blocks)
    how = {"importance": mode, "prune": prune if part == WHOLE else "zero", "part": part, "reuse_prefix": "on" if reuse_prefix else "off"}
    probes = Probes(layers, len(inspector.percents), mode, spare_memory, guidance, reuse_prefix, how)
    if probes.evaluations > MOST and not sure:
        raise LoomError(
            f"importance '{mode}' would evaluate the model {probes.evaluations} times ({sum(n for _, n in layers)} heads at {probes.steps} steps), more than {MOST}; choose screen or fast, "
            "fewer steps or blocks, or switch 'sure' on."
        )
    clone = attach(model, PruneSlope(prune, part, inspector.words) if mode == "fast" else Pruning(prune, part, inspector.words, guidance))
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
    series = _Series(args, probes, study, run)
    if not study.layer_importance and probes.mode == "screen":
        for layer, _ in probes.layers:
            study.layer_importance[layer] = series.change(layer, None)["importance"]
    best = sorted(study.layer_importance, key=lambda n: (-study.layer_importance[n], n))[:LAYERS]
    chosen = [(layer, h) for layer, heads in probes.layers if probes.mode == "full" or layer in best for h in range(heads)]
    bar = comfy.utils.ProgressBar(len(chosen))
    found: Pruned = {}
    for layer, head in chosen:
        found[layer, head] = series.change(layer, head)
        bar.update(1)
    study.evaluations += probes.each * len(chosen) + (len(probes.layers) if probes.mode == "screen" and not study.pruned else 0)
    study.handed_on += series.handed_on
    return ranked(found)


class _Series:
    """The pruned evaluations of one step. args: as the host gives them to post-CFG functions."""

    def __init__(self, args: dict[str, Any], probes: Probes, study: Study, run: Run) -> None:
        if probes.guidance and args["uncond"] is None:
            raise no_negative()
        self.args, self.study, self.run, self.guidance = args, study, run, probes.guidance
        self.relay: Relay | None = None
        self._reuse, self._walked_both, self._before = probes.reuse, False, 0

    @property
    def handed_on(self) -> int:
        """Blocks not computed again."""
        return self._before + (0 if self.relay is None else self.relay.taken)

    def _reach(self, layer: int, both: bool) -> None:
        """Hand on what stands before a layer, for the same prompts in the same batch."""
        if self.relay is None or self._walked_both != both:
            self._before, self._walked_both = self.handed_on, both
            self.relay = self._relay()
        self.relay.reach(layer, partial(self._evaluate, {}, both))

    def _relay(self) -> Relay:
        diffusion = self.args["model"].diffusion_model
        family = family_of(diffusion)
        return Relay(family.blocks(diffusion), family.batch_axis(diffusion))

    def change(self, layer: int, head: int | None) -> dict[str, float]:
        """What pruning a head, or with None the whole layer, does; of the guidance for heads only. Raises LoomError where the layer cannot be reached."""
        both = self.guidance and head is not None
        if self._reuse:
            self._reach(layer, both)
        pass_, pruned = self._evaluate({layer: head}, both)
        self.run.passes[Pruning.owner] += len(pruned)
        if not pass_.touched:
            raise _unreached(layer, self.study)
        found = changes(self.args["cond_denoised"], pruned[0], self.args["input"])
        if both:
            found[GUIDANCE] = guidance_change((self.args["cond_denoised"], self.args["uncond_denoised"]), (pruned[0], pruned[1]))
        return found

    def _evaluate(self, heads: dict[int, int | None], both: bool) -> tuple[PrunePass, list[Tensor]]:
        pass_ = PrunePass(Pruning.owner, relay=self.relay, heads=heads)
        return pass_, evaluate_all(pass_, self.args, ("cond", "uncond") if both else ("cond",))


def _fast(args: dict[str, Any], probes: Probes, watch: Watch, run: Run) -> Pruned:
    """All heads by one evaluation with a gradient. Raises LoomError where a layer's attention cannot be reached."""
    layers = [layer for layer, _ in probes.layers]
    pass_ = SlopePass(PruneSlope.owner, samples=len(args["input"]), layers=frozenset(layers))
    found = slopes(args, pass_, probes.spare_memory)
    run.passes[PruneSlope.owner] += 1
    watch.study.evaluations += 1
    missed = [layer for layer in layers if layer not in pass_.gates]
    if missed:
        raise _unreached(missed[0], watch.study)
    return found


def _unreached(layer: int, study: Study) -> LoomError:
    """Why, as far as the study knows."""
    why = "; ".join(study.notes) if study.how.get("part") == WORDS and study.notes else "another node replaces its attention or skips it"
    return LoomError(f"layer {layer} could not be pruned: {why}; leave it out with 'blocks', or set importance off.")
