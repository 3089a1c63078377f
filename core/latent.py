"""Latent steps: methods that change the latent between two steps by a gradient through the host's model.

Called from two places of ``core/attach.py``: :func:`prepare` before the first step, :func:`guide` around every evaluation of the
sampler. A step is scheduled when its sigma is one of the run's own; samplers that evaluate in between, or twice, are guided
once per step, at the sampler's own state. The new latent is written into the tensor the sampler handed over, so it must be
the sampler's state: samplers that hand over a copy are refused, and so are inpainting masks, with which the host makes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .columns import Collector, Columns, Finished
from .concepts import PROMPT
from .differentiable import explained, gradients, options_for_gradient, plain, positive_only, thawed
from .errors import LoomError
from .guidance import EXTRA, ExtraPass
from .influence import Influence, Taps
from .methods.guided import LatentMethod, Moment, collecting
from .report import Entry, Run

if TYPE_CHECKING:
    from .families.base import Family

OVERRIDE = "optimized_attention_override"
HIDDEN = {
    "sample_unipc": "uni_pc",
    "sample_unipc_bh2": "uni_pc_bh2",
    "dpm_fast_function": "dpm_fast",
    "dpm_adaptive_function": "dpm_adaptive",
    "sample_heunpp2": "heunpp2",
    "sample_sa_solver": "sa_solver",
    "sample_sa_solver_pece": "sa_solver_pece",
}
"""The host's samplers that evaluate the model on copies, between steps, or ahead: their function and their name."""
AHEAD: dict[str, tuple[str, float] | None] = {
    "sample_heun": None,
    "sample_dpm_2_ancestral": ("eta", 1.0),
    "sample_dpmpp_2s_ancestral": ("eta", 1.0),
    "sample_dpmpp_2s_ancestral_cfg_pp": ("eta", 1.0),
    "sample_exp_heun_2_x0": None,
    "sample_exp_heun_2_x0_sde": None,
    "sample_seeds_2": ("r", 0.5),
}
"""Samplers that look at the next sigma before they step to it: the second evaluation there is that of their own state. With an option: only
where that is so set (:func:`_looks_ahead`); the value is the sampler's default. The exp_heun are of later hosts.
"""
NOT_AHEAD_ON_FLOW = ("sample_dpmpp_2s_ancestral",)
HALF_LOSS_SCALE = 1024.0
"""Loss factor for models in float16, whose small gradients would vanish; a power of two, so otherwise exact."""
SAME_SIGMA = 2e-4
"""Relative; some samplers begin flow models at sigma 0.9999 in place of 1."""

_SAMPLER, _AHEAD, _VISITS, _DONE, _WAITING = (("latent", name) for name in ("sampler", "ahead", "visits", "done", "waiting"))


# --- before the first step ------------------------------------------------------------------------------------------


def prepare(methods: tuple[LatentMethod, ...], guider: Any, family: Family, diffusion: Any, run: Run, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check a run and make it ready. args: what the host hands its sampling loop after the noise (latent, sampler, sigmas,
    mask, callback, ...); returned with a callback that sees whether the first change arrived. Raises LoomError.
    """
    latent, sampler, sigmas, mask, callback = args[:5]
    owner = methods[0].owner
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    if mask is not None:
        raise LoomError(f"{owner} cannot change the latent of an inpainting run: the host rebuilds it from the mask at every step. Take the noise mask off the latent.")
    if name in HIDDEN:
        raise LoomError(f"{owner} cannot reach the state of the sampler {HIDDEN[name]}; choose euler, euler_ancestral, heun, dpmpp_2m, dpmpp_sde or res_multistep.")
    if guider.model_options.get("context_handler") is not None:
        raise LoomError(f"{owner} cannot work with context windows, which cut the latent into parts; take the context window node out.")
    if "positive" not in guider.conds:
        raise LoomError(f"{owner} needs a positive prompt under that name; the guider {type(guider).__name__} has {', '.join(guider.conds) or 'none'}.")
    run.state[_SAMPLER] = name
    run.state[_AHEAD] = _looks_ahead(name, getattr(sampler, "extra_options", {}))
    for method in methods:
        method.fit(tuple(latent.shape), len(sigmas) - 1, memory_of(run, method), run.warn)
        method.prepare(family, diffusion, run.grid or (1, 1, 1), memory_of(run, method))
    return (*args[:4], _arriving(callback, owner, name, run), *args[5:])


def _looks_ahead(name: str, options: dict[str, Any]) -> bool:
    """Whether a sampler evaluates at the next sigma before it is there: those with an option do where that is 1."""
    if name not in AHEAD:
        return False
    option = AHEAD[name]
    return option is None or float(options.get(*option)) == 1.0


def memory_of(run: Run, method: LatentMethod) -> dict[Any, Any]:
    """What a method keeps until the run ends."""
    return run.kept(("memory", method.owner), dict)  # type: ignore[no-any-return]


def finish(methods: tuple[LatentMethod, ...], result: Tensor, run: Run) -> Tensor:
    """What the methods make of the sampled latent."""
    for method in sorted(methods, key=lambda m: m.turn):
        result = method.finish(result, memory_of(run, method))
    return result


def _arriving(callback: Callable[..., Any] | None, owner: str, sampler: str, run: Run) -> Callable[..., Any]:
    """The callback, preceded by a look whether the sampler's state is the tensor that was changed (at its first step)."""

    def look(i: int, denoised: Tensor, x: Tensor, total: int) -> Any:
        written = run.state.pop(_WAITING, None)
        if written is not None and i == 0 and isinstance(x, Tensor) and x.data_ptr() != written:
            raise LoomError(f"{owner} changed the latent, but the sampler {sampler} works on another copy of it; choose euler, heun or dpmpp_2m.")
        return None if callback is None else callback(i, denoised, x, total)

    return look


# --- around every evaluation ----------------------------------------------------------------------------------------


def guide(executor: Any, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: Any, methods: tuple[LatentMethod, ...], run: Run) -> Tensor:
    """One evaluation of the sampler, with the latent steps that are due before it. Returns the denoised latent."""
    model = executor.class_obj.inner_model
    moment = _moment(model, sigma, model_options, run)
    if moment is None:
        return executor(x, sigma, model_options, seed)
    inside = [m for m in methods if m.window.contains(moment.sigma, model.model_sampling.percent_to_sigma)]
    steps = [(m, LatentStep(m, executor.class_obj, x, sigma, model_options, moment, run)) for m in sorted(inside, key=lambda m: m.turn)]
    for method, step in steps:
        if step.idle:
            run.warn(f"{method.owner} left some steps alone: the prompt its words are of does not hold there")
    steps = [(method, step) for method, step in steps if not step.idle]
    for method, step in steps:
        method.before(step)
    try:
        out = executor(x, sigma, model_options, seed)
    finally:
        for method, _ in steps:
            run.state.pop(collecting(method), None)
    for method, step in steps:
        method.after(step)
    return out  # type: ignore[no-any-return]


def _moment(model: Any, sigma: Tensor, model_options: dict[str, Any], run: Run) -> Moment | None:
    """The scheduled step that begins with this evaluation, or None."""
    schedule = model_options.get("transformer_options", {}).get("sample_sigmas")
    if schedule is None:
        return None
    levels, now = schedule.tolist()[:-1], float(sigma.max())
    index = min(range(len(levels)), key=lambda i: abs(levels[i] - now), default=None)
    visits, done = run.kept(_VISITS, Counter), run.kept(_DONE, set)
    if index is None or index in done or abs(levels[index] - now) > SAME_SIGMA * now:
        return None
    flow, name = is_flow(model.model_sampling), run.state.get(_SAMPLER)
    visits[index] += 1
    if index > 0 and visits[index] == 1 and run.state.get(_AHEAD) and not (flow and name in NOT_AHEAD_ON_FLOW):
        return None
    done.add(index)
    return Moment(index, len(levels), now, flow)


def is_flow(sampling: Any) -> bool:
    """Whether the host's latent is ``(1 - sigma) data + sigma noise``."""
    import comfy.model_sampling

    return isinstance(sampling, comfy.model_sampling.CONST)


class LatentStep:
    """What a method may do at one step: see :class:`core.methods.guided.Step`."""

    def __init__(self, method: LatentMethod, guider: Any, x: Tensor, sigma: Tensor, model_options: dict[str, Any], at: Moment, run: Run) -> None:
        self.at, self.run, self.memory, self.x = at, run, memory_of(run, method), x
        self._method, self._guider, self._sigma, self._options = method, guider, sigma, model_options

    @property
    def entry(self) -> dict[str, Any]:
        """The prepared conditioning the method works on: of the positive prompts that cover the whole picture now the one its words are of,
        or the only one.
        """
        every = [entry for entry in self._guider.conds["positive"] if "area" not in entry and "mask" not in entry and self._holds(entry)]
        own = [entry for entry in every if self._own(entry)]
        if not every:
            raise LoomError(f"{self._method.owner} needs a positive prompt for the whole picture; all of them are limited to an area, a mask or other steps.")
        if not own and len(every) > 1 and self._method.prompt:
            raise LoomError(
                f"{self._method.owner} was given {len(every)} positive prompts for the whole picture, and none is known as the one its words were found in; "
                "combine with the node's own output 'positive'."
            )
        entry = (own or every)[0]
        if entry.get("hooks") is not None:
            raise LoomError(f"{self._method.owner} cannot take a gradient through a prompt that carries hooks (scheduled LoRA); take the hooks off the positive prompt.")
        return entry  # type: ignore[no-any-return]

    @property
    def idle(self) -> bool:
        """Whether the prompt the method's words are of does not hold at this step, but another one."""
        own = [entry for entry in self._guider.conds["positive"] if self._own(entry)]
        return bool(own) and not any(self._holds(entry) for entry in own)

    def _own(self, entry: dict[str, Any]) -> bool:
        return bool(self._method.prompt) and entry.get(PROMPT) == self._method.prompt

    def _holds(self, entry: dict[str, Any]) -> bool:
        begin, end = entry.get("timestep_start"), entry.get("timestep_end")
        return not ((begin is not None and self.at.sigma > begin) or (end is not None and self.at.sigma < end))

    def gradient(self, wanted: Columns, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """See the protocol."""
        entry = self.entry
        collector = Collector(wanted, _context(entry), stops=True)
        with self._explained(), gradients(self._model if self._method.spare_memory else None), thawed(self._model):
            x = self.x.detach().clone().requires_grad_(True)
            self._forward(positive_only(entry), x, collector)
            if collector.maps is None:
                raise LoomError(self._no_maps)
            losses = loss(collector.maps)
            (gradient,) = torch.autograd.grad(losses.sum() * self._scale, x)
            return gradient / self._scale, losses.detach()

    def influence(self, wanted: Columns, numbers: Callable[[Tensor, Tensor | None], Tensor], against: bool = False) -> list[Influence]:
        """See the protocol."""
        entry = self.entry
        other = self._negative() if against else None
        taps = Taps(wanted, _context(entry))
        with self._explained(), gradients(self._model if self._method.spare_memory else None), thawed(self._model):
            x = self.x.detach().clone()
            denoised = self._forward(positive_only(entry), x, taps, aside=True)
            if taps.empty or denoised is None:
                raise LoomError(self._no_maps)
            self.run.passes[self._method.owner] += 1
            return taps.influences(numbers((x - denoised) / self.at.sigma, plain(other)), self._scale)

    def noised(self, data: Tensor, noise: Tensor) -> Tensor:
        """See the protocol."""
        ready = self._model.process_latent_in(data.to(self.x))
        return self._model.model_sampling.noise_scaling(self._sigma, noise.to(self.x), ready)  # type: ignore[no-any-return]

    @property
    def _model(self) -> Any:
        return self._guider.inner_model

    @property
    def _scale(self) -> float:
        return HALF_LOSS_SCALE if (self._model.manual_cast_dtype or self._model.get_dtype()) == torch.float16 else 1.0

    @property
    def _no_maps(self) -> str:
        return f"{self._method.owner} found no attention maps in the chosen blocks; another node may replace these blocks: choose others."

    def _explained(self) -> AbstractContextManager[None]:
        """What autograd says, as a sentence for users."""
        return explained(self._method.owner, "switch spare_memory on, choose blocks that lie earlier in the model, or a smaller picture")

    def _forward(self, entry: dict[str, Any], x: Tensor, collector: Collector, aside: bool = False) -> Tensor | None:
        """The denoised latent, None if the pass was ended early. aside: other readers look away."""
        from comfy.samplers import calc_cond_batch

        options = options_for_gradient(self._options, OVERRIDE)
        key = collecting(self._method)
        self.run.state[key] = collector
        try:
            (denoised,) = calc_cond_batch(self._model, [[entry]], x, plain(self._sigma), self._aside(options) if aside else options)
            return denoised  # type: ignore[no-any-return]
        except Finished:
            return None
        finally:
            self.run.state.pop(key, None)

    def _negative(self) -> Tensor:
        """Prediction for the negative prompt."""
        from comfy.samplers import calc_cond_batch

        prompts = self._guider.conds.get("negative")
        if not prompts:
            raise LoomError(f"{self._method.owner} compares with the negative prompt and this guider has none; set scalar to energy, or use a sampler node with a negative prompt.")
        (denoised,) = calc_cond_batch(self._model, [prompts], self.x, self._sigma, self._aside(self._options))
        self.run.passes[self._method.owner] += 1
        return (self.x - denoised) / self.at.sigma  # type: ignore[no-any-return]

    def _aside(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a pass that is not the sampler's own."""
        return dict(options) | {"transformer_options": dict(options.get("transformer_options", {})) | {EXTRA: ExtraPass(self._method.owner)}}

    def move(self, x: Tensor) -> None:
        """See the protocol."""
        self.x.copy_(x)
        self.run.state[_WAITING] = self.x.data_ptr()
        self.run.count(Entry("latent step", True, "gradient", (self._method.owner,), ("latent",)))

    def watch(self, wanted: Columns) -> Collector:
        """See the protocol."""
        entry = self.entry
        collector = Collector(wanted, _context(entry), chosen=entry["uuid"])
        self.run.state[collecting(self._method)] = collector
        return collector


def _context(entry: dict[str, Any]) -> int:
    """Tokens of a conditioning as the text encoder made it: some models pad it later, and then its words stand elsewhere."""
    text = entry.get("cross_attn")
    if text is None:
        raise LoomError("the positive prompt holds no text tokens; connect the output of a text encoder.")
    return int(text.shape[1])
