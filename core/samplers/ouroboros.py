"""The sampler of endless clips, for the host's SamplerCustomAdvanced.

Sources: "FIFO-Diffusion", arXiv 2405.11473 (the queue); "Ouroboros-Diffusion", arXiv 2501.09019 (the coherent tail). Each iteration
asks the model once per window of the queue, takes Euler steps (DDIM steps in the host's units) slot by slot, hands out the frame at
the head and appends a new tail. All noise is a function of the seed and of the frame it belongs to, so an interrupted run goes on
from its file as if it had never stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..call import QueueWindow
from ..errors import LoomError
from ..report import Entry
from . import checks, prompts, queue, store, tail
from .per_frame import Conds, Frames
from .queue import Layout, Window
from .recurrent import Guidance, change, learned

log = logging.getLogger(__name__)

SLOT, TAIL, TAIL_OLD, ETA = range(4)
"""What a noise is for: the start of a slot, a new tail, the old frame in it, the random part of a step."""
START_STEPS = 24
"""Steps of a start clip made here, about: a subset of the queue's levels."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    frames: latent frames to make. window: f, latent frames per model call, 0 = as many as the latent has. partitions, lookahead: see
    :mod:`core.samplers.queue`. tail: None = fresh noise. eta: random part of a step, for models that predict noise. switch: whether a
    new prompt holds for each frame from its own number on, or for the whole queue when that frame leaves. fresh_tail_at_switch: let
    fresh noise enter around a change of prompt. longer_window: allow a window beyond the trained length. save: queue file; resume:
    queue file to go on from. keep_on_stop: an interrupted run ends well with the frames so far.
    """

    frames: int
    window: int = 0
    partitions: int = 4
    lookahead: bool = True
    tail: tail.Coherent | None = field(default_factory=tail.Coherent)
    eta: float = 0.0
    switch: prompts.Switch = "each frame"
    fresh_tail_at_switch: bool = True
    longer_window: bool = False
    save: Path | None = None
    resume: Path | None = None
    keep_on_stop: bool = True

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise LoomError(f"{self.frames} frames were asked for; ask for 1 or more.")
        if not 0.0 <= self.eta <= 1.0:
            raise LoomError(f"eta {self.eta:g} was given; it lies between 0 (none) and 1 (as much as DDPM).")
        if self.switch not in prompts.SWITCHES:
            raise LoomError(f"switch_prompt '{self.switch}' was given; choose one of {', '.join(prompts.SWITCHES)}.")
        Layout(self.window or 2, self.partitions, self.lookahead)


class Ouroboros:
    """A SAMPLER of the host."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Called by the host. latent_image: empty (all 0: it gives the size, and a start clip is made here) or a clean start clip, in
        the model's units. Returns the frames made, oldest first, on the CPU.
        """
        return Run(self.settings, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar).go()


class Run:
    """One run of the sampler."""

    def __init__(self, settings: Settings, guider: Any, sigmas: Tensor, extra: dict[str, Any], callback: Any, noise: Tensor, latent: Tensor | None, mask: Any, quiet: bool) -> None:
        from ..attach import METHODS, RECORD

        options, diffusion = extra["model_options"], guider.model_patcher.get_model_object("diffusion_model")
        methods = options.get("transformer_options", {}).get(METHODS, ())
        self.settings, self.callback, self.quiet, self.seed = settings, callback, quiet, int(extra.get("seed") or 0)
        self.calls = Frames(guider, options, extra.get("seed"))
        checks.check_options(options, mask)
        checks.check_methods(methods)
        checks.check_conds(guider.conds)
        prompts.check(guider.conds)
        self.conds: Conds = guider.conds
        self.model = type(diffusion).__name__
        self.record = options.get("transformer_options", {}).get(RECORD)
        self.guidance = _guidance(self.calls, methods, diffusion)
        self.sampling = self.calls.sampling
        self.noise = self._as_clip(noise)
        given = latent is not None and bool(torch.count_nonzero(latent))
        self.clip = self._as_clip(latent) if given and latent is not None else None
        self.layout = Layout(settings.window or self.noise.shape[2], settings.partitions, settings.lookahead)
        checks.check_clip(self.noise, self.calls.rows, self.layout, given)
        if not settings.longer_window:
            checks.check_trained(guider.model_patcher, self.layout.frames, methods)
        self.levels = queue.ascending(sigmas, self.layout)
        self.flow = _is_flow(self.sampling)
        if self.flow and settings.eta:
            raise LoomError(f"eta {settings.eta:g} was given and this is a flow model, whose steps have no random part; set eta to 0.")
        self.full = _starts_at_top(guider, sigmas)
        self.switches = prompts.begins(self.conds)
        self.emitted: list[Tensor] = []

    def _as_clip(self, x: Tensor) -> Tensor:
        if self.calls.rows:
            return x.movedim(0, 1)[None].float()
        if x.ndim != 5:
            raise LoomError(f"the latent has the shape {tuple(x.shape)}, a picture; an endless clip needs a video latent [batch, channels, frames, height, width].")
        return x.float()

    # --- the loop -----------------------------------------------------------------------------------------------------

    def go(self) -> Tensor:
        """All frames asked for, or those made before an interruption."""
        self.state = self._first()
        skipped = max(0, self.layout.warm_up - self.state.iteration)
        total = skipped + self.settings.frames
        self.before = self.progress_steps - total
        with self._interruptible(), self._bar(total) as bar:
            for step in range(total):
                out = self._iteration()
                if step >= skipped:
                    self.emitted.append(out.cpu())
                bar.update(1)
                self._show(self.before + step, out)
                if self.settings.save and (step + 1) % self.layout.frames == 0:
                    self._save()
        if self.settings.save:
            self._save()
        return self._result()

    def _iteration(self) -> Tensor:
        """One frame leaves, one enters; the state changes only when both are done."""
        at = self.state.iteration
        self.memory = self.state.memory
        new = queue.iterate(self.state.queue, self.layout.windows(), self._step)
        self._refuse_nonfinite(new, at)
        entering = self._tail(new[:, :, -1:], at)
        out = new[:, :, self.layout.pinned : self.layout.pinned + 1].clone()
        self.state = store.State(queue.shift(new, entering), at + 1, self.memory)
        return out

    def _step(self, window: Window, x: Tensor) -> Tensor:
        """The slots of a window one level down."""
        _throw_if_interrupted()
        at, slots = self.state.iteration, range(window.start, window.end)
        sigma = self.levels[[self.layout.level(s) for s in slots]].to(x.device)
        target = torch.stack([self._below(s) for s in slots]).to(x.device)
        frames = tuple(self._clamped(self.layout.frame(s, at)) for s in slots)
        conds = prompts.holding(self.conds, self._scene(window), window.number)
        place = QueueWindow(window.number, len(self.layout.windows()), frames, at, at // self.layout.frames, prompts.scene(conds), self.layout.pinned, self.state.memory)
        out = self._moved(x, self.calls.denoised(x, sigma, conds, frames, place), sigma, target, slots)
        return out if self.guidance is None else self._guided(self.guidance, out, x, sigma, target, conds, place)

    def _guided(self, guidance: Guidance, out: Tensor, x: Tensor, sigma: Tensor, target: Tensor, conds: Conds, place: QueueWindow) -> Tensor:
        """Drawn towards what is remembered of the subject; the head's window adds to it."""
        self.memory = learned(guidance.method, place, self.memory)
        if not guidance.due(place, self.state.memory):
            return out
        _throw_if_interrupted()
        gradient = guidance.gradient(x, sigma, conds, place, self.state.memory)
        if gradient is None:
            return out
        if self.record is not None and self.record.current is not None:
            self.record.current.count(Entry("latent step", True, "gradient", (guidance.method.owner,), ("latent",)))
        unit = torch.ones_like(sigma) if self.flow else (1 + sigma**2).sqrt()
        return out - change(gradient.to(out), sigma, ancestral(sigma, target, self.settings.eta)[0], unit, guidance.method.gamma, guidance.method.normalised)

    def _moved(self, x: Tensor, denoised: Tensor, sigma: Tensor, target: Tensor, slots: range) -> Tensor:
        """An Euler step per slot; with eta an ancestral one, its noise keyed by frame and level."""
        down, up = ancestral(sigma, target, self.settings.eta)
        out = x + (x - denoised) / _along(sigma, x) * _along(down - sigma, x)
        if self.settings.eta:
            at = self.state.iteration
            random = torch.cat([queue.noise_like(x[:, :, :1], self.seed, ETA, at + s, self.layout.level(s)) for s in slots], 2)
            out = out + random * _along(up, x)
        return out

    def _below(self, slot: int) -> Tensor:
        level = self.layout.level(slot)
        return self.levels[level - 1] if level else torch.zeros(())

    def _clamped(self, frame: int) -> int:
        """Frames before the first are copies of it."""
        return max(0, frame)

    def _scene(self, window: Window) -> int:
        """The frame whose prompt a window reads: the middle of those it changes, or the one that leaves."""
        middle = (window.mid + window.end - 1) // 2
        return self.layout.frame(middle if self.settings.switch == "each frame" else self.layout.pinned, self.state.iteration)

    # --- beginning ----------------------------------------------------------------------------------------------------

    def _first(self) -> store.State:
        """The queue before the first iteration."""
        remaining = self.layout.warm_up + self.settings.frames
        if self.settings.resume:
            found = store.read(self.settings.resume, self.layout, self.levels, self.model, self.noise)
            self.progress_steps = max(0, self.layout.warm_up - found.iteration) + self.settings.frames
            return found
        steps = self._start_levels() if self.clip is None else []
        self.progress_steps = max(0, len(steps) - 1) + remaining
        clip = self._start_clip(steps) if self.clip is None else self.clip
        return store.State(queue.first_queue(clip, self.layout, self._noised))

    def _start_levels(self) -> list[float]:
        stride = max(1, self.layout.levels // START_STEPS)
        return [*self.levels.flip(0)[::stride].tolist(), 0.0]

    def _start_clip(self, steps: list[float]) -> Tensor:
        """An ordinary short clip by the same guider: plain Euler on a subset of the levels, from the host's noise."""
        if not bool(torch.count_nonzero(self.noise)):
            raise LoomError("neither noise nor a start clip was given; connect RandomNoise, or a latent that holds a short clip.")
        x = self._noisy(self.noise[:, :, : self.layout.frames], steps[0])
        frames = tuple(range(x.shape[2]))
        for i, (now, then) in enumerate(pairwise(steps)):
            _throw_if_interrupted()
            sigma = torch.full((x.shape[2],), now)
            denoised = self.calls.denoised(x, sigma, prompts.holding(self.conds, 0), frames)
            x = x + (x - denoised) / now * (then - now)
            self._show(i, denoised[:, :, :1])
        if not bool(x.isfinite().all()):
            raise LoomError("the start clip is not finite; check model, precision and schedule with an ordinary sampler first.")
        return x

    def _noised(self, frame: Tensor, level: int, slot: int) -> Tensor:
        sigma = self.levels[level].to(frame)
        return self.sampling.noise_scaling(sigma, queue.noise_like(frame, self.seed, SLOT, slot), frame, False)  # type: ignore[no-any-return]

    def _noisy(self, unit: Tensor, sigma: float) -> Tensor:
        """Unit-variance noise as the model's latent of nothing but noise."""
        level = torch.as_tensor(sigma, dtype=torch.float32, device=unit.device)
        return self.sampling.noise_scaling(level, unit.clone(), torch.zeros_like(unit), self.full)  # type: ignore[no-any-return]

    # --- the tail -----------------------------------------------------------------------------------------------------

    def _tail(self, last: Tensor, at: int) -> Tensor:
        """The slot that enters. last: the last slot after its step."""
        entering = at + self.layout.levels  # counted as slots are: the place it will have had in the first queue
        fresh = queue.noise_like(last, self.seed, TAIL, entering)
        top = float(self.levels[-1])
        settings = self.settings.tail
        if settings is None or (self.settings.fresh_tail_at_switch and self._at_switch(at)):
            return self._noisy(fresh, top)
        old = self._old(last, queue.noise_like(last, self.seed, TAIL_OLD, entering), top, settings.rho)
        renorm = self.flow if settings.renorm is None else settings.renorm
        return self._noisy(tail.mixed(old, fresh, settings, renorm), top)

    def _old(self, last: Tensor, noise: Tensor, top: float, rho: float) -> Tensor:
        """The last slot back at the top level, in unit variance."""
        if self.flow:
            return tail.renoised_flow(last, noise, rho)
        return tail.renoised(last, noise, float(self.levels[-2]), top) / float(self._noisy(torch.ones(()), top))

    def _at_switch(self, at: int) -> bool:
        """Whether a new prompt has just begun where the tail is (or, for the whole queue, at the head)."""
        slot = self.layout.length - 1 if self.settings.switch == "each frame" else self.layout.pinned
        now = self.layout.frame(slot, at + 1)
        return any(begin <= now < begin + max(1, self.layout.frames // 2) for begin in self.switches)

    # --- ending -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """An interruption ends the run; the queue is kept, and the frames so far, if there are any and the user wants them."""
        from comfy.model_management import InterruptProcessingException

        try:
            yield
        except InterruptProcessingException:
            if self.settings.save:
                self._save()
            if not (self.settings.keep_on_stop and self.emitted):
                raise
            log.info("%s stopped; the %d latent frames made so far go on to the next node.", checks.OWNER, len(self.emitted))

    def _save(self) -> None:
        assert self.settings.save is not None
        store.write(self.settings.save, self.state, self.layout, self.levels, self.model)

    def _result(self) -> Tensor:
        clip = torch.cat(self.emitted, 2)
        return clip[0].movedim(1, 0) if self.calls.rows else clip

    def _refuse_nonfinite(self, new: Tensor, at: int) -> None:
        bad = ~new.isfinite().all(0).all(0).flatten(1).all(1)
        if bool(bad.any()):
            slot = int(bad.nonzero()[0])
            level = self.layout.level(slot)
            raise LoomError(
                f"the latents became NaN or infinite in iteration {at + 1}, slot {slot} (noise level {level} of {self.layout.levels}, sigma {float(self.levels[level]):.4g}); "
                "load the model in bf16 or fp32, or lower the guidance."
            )

    # --- showing ------------------------------------------------------------------------------------------------------

    def _show(self, step: int, frame: Tensor) -> None:
        """Progress and a preview of one frame [B, C, 1, H, W]."""
        if self.callback is not None:
            shown = frame[0].movedim(1, 0) if self.calls.rows else frame
            self.callback(step, shown, shown, self.progress_steps)

    def _bar(self, total: int) -> Any:
        from tqdm.auto import tqdm

        return tqdm(total=total, disable=self.quiet, desc="frames")


# --- small helpers --------------------------------------------------------------------------------------------------


def ancestral(sigma: Tensor, target: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(level a step goes to, noise added after it), so that the variance is that of ``target``: DDIM with this eta."""
    if not eta:
        return target, torch.zeros_like(target)
    up = torch.minimum(target, eta * (target**2 * (sigma**2 - target**2) / sigma**2).clamp_min(0).sqrt())
    return (target**2 - up**2).clamp_min(0).sqrt(), up


def _along(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, 1, -1, 1, 1).to(x)


def _is_flow(sampling: Any) -> bool:
    from ..latent import is_flow

    return is_flow(sampling)


def _guidance(calls: Frames, methods: tuple[Any, ...], diffusion: Any) -> Guidance | None:
    """The node that keeps the subject, where it is on the model."""
    from ..families import family_of
    from ..methods.endless_subject import EndlessSubject

    method = next((m for m in methods if isinstance(m, EndlessSubject)), None)
    return None if method is None else Guidance(calls, method, family_of(diffusion), diffusion)


def _starts_at_top(guider: Any, sigmas: Tensor) -> bool:
    """Whether the schedule begins with nothing but noise, as the host judges it."""
    from comfy.samplers import Sampler

    return bool(Sampler().max_denoise(guider, sigmas))


def _throw_if_interrupted() -> None:
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()
