"""Learning concepts from one picture: the loop.

Source: Shentu, Watson, Al Moubayed, AttenCraft, arXiv 2405.17965: masked loss on the picture, prior loss on pictures of the base model, attention loss
between words' maps and masks; masks are looked for anew every few steps. Written from its description; no code was taken. Keys and values of the start token
are constants of every gradient. Runs inside the host's own sampling, so models are loaded and freed as always.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..columns import Collector, Columns
from ..differentiable import gradients, options_for_gradient, plain, positive_only, thawed
from ..errors import LoomError
from ..families import family_of
from ..families.base import running
from ..hunt.identity import model_key
from ..latent import OVERRIDE
from ..methods.attencraft import Capture, start_held
from . import adapters, losses, masks, store
from .divergence import from_masks
from .layers import reading
from .likeness import SIDE, ssim
from .look import STEPS, OneCall, look, reader, sigma_at
from .masks import START, WINDOW, Rule
from .plan import Plan
from .self_map import SelfMap
from .subsets import draw, probabilities
from .words import Prompts, Written

PARTS = ("loss", "masked", "prior", "attention")
Show = Callable[["Training"], None]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned from. latent [1, C, h, w] in the VAE's units; masks: of its concepts, fp32 [n, H, W], or None to look for them; prior [m, C, h, w] with
    conditionings of its pictures, one or m, or None.
    """

    latent: Tensor
    masks: Tensor | None = None
    prior: Tensor | None = None
    texts: tuple[Any, ...] = ()


@dataclass(eq=False)
class Training(OneCall):
    """A training under way. folder: of its checkpoints; rule: how masks are made."""

    model: Any
    prompts: Prompts
    lesson: Lesson
    plan: Plan
    rule: Rule
    folder: Path
    show: Show = lambda training: None
    sketch: Callable[[Training, Any, dict[str, Any], torch.device], None] | None = None
    done: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    refreshed: list[tuple[int, bool]] = field(default_factory=list)
    sketches: list[tuple[int, str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.diffusion = self.model.get_model_object("diffusion_model")
        size = (self.lesson.latent.shape[-2], self.lesson.latent.shape[-1])
        self.layers = reading(family_of(self.diffusion), self.diffusion, size, self.rule.detail)
        if self.layers.joint:
            raise LoomError(f"{family_of(self.diffusion).name} has no cross-attention to train; connect a U-Net: SD 1.5, SD 2 or SDXL.")
        self.scale = losses.error_scale(self.model.get_model_object("model_sampling"))
        self.capture = Capture()
        with torch.inference_mode(False):
            self.adapters = adapters.made(self.diffusion, self.plan.kind, self.plan.rank, self.plan.keys, self.plan.values, self.model.load_device, self.plan.seed)
            if self.plan.words:
                self.prompts.begin()
            self.optimiser = torch.optim.AdamW([*adapters.parameters(self.adapters), *self.prompts.parameters()], lr=self.plan.rate, weight_decay=self.plan.decay)
            self.generator = torch.Generator().manual_seed(self.plan.seed)
        self.every = tuple(range(len(self.prompts.concepts)))
        self.masks: Tensor | None = None
        self.scores: tuple[float, ...] = ()

    # --- from outside -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end. Whatever ends it, the model is as before and what was learned is in the folder."""
        import comfy.model_management as memory
        from comfy.samplers import CFGGuider

        clone = reader(self.model, self.layers, self.capture, hold_start=True)
        memory.load_models_gpu([clone, self.prompts.clip.patcher], force_full_load=True)
        if self.masks is None:
            self._first_masks()
        check_refresh(self.plan, self.masks)
        guider = CFGGuider(clone)
        guider.inner_set_conds({"positive": self._conditioning()})
        latent = self.lesson.latent
        guider.sample(torch.zeros_like(latent), latent, self, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=self.plan.seed)

    def lora(self) -> dict[str, Tensor]:
        """A LORA_MODEL of the host."""
        return adapters.state(self.adapters)

    def key(self) -> str:
        """What must be the same for a checkpoint to be gone on from."""
        sha = hashlib.sha256(repr((self.plan.course, self.rule, self.prompts.concepts, self.prompts.template, self.prompts.joiner, model_key(self.model))).encode())
        for tensor in (self.lesson.latent, self.lesson.prior, self.lesson.masks):
            sha.update(b"-" if tensor is None else tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]

    def resume(self) -> bool:
        """Go on from the folder's checkpoint, if there is one. Raises LoomError if it belongs to another training."""
        found = store.load(self.folder)
        if found is None:
            return False
        tensors, facts = found
        if facts["key"] != self.key():
            raise LoomError(f"'{self.folder.name}' was trained on other pictures, concepts, settings or another model; choose another name, or switch resume off to start over.")
        with torch.inference_mode(False):
            adapters.load(self.adapters, tensors)
            self.prompts.take({name.removeprefix("word."): t for name, t in tensors.items() if name.startswith("word.")})
            self._load_optimiser(tensors)
            self.generator.set_state(tensors["generator"])
            self.masks, self.scores = tensors["masks"].bool(), tuple(facts["scores"])
        self.done, self.history, self.refreshed = facts["done"], facts["history"], [tuple(r) for r in facts["refreshed"]]
        return True

    def save(self) -> None:
        """Write the checkpoint."""
        words = {f"word.{stream}.{i}": v for stream, vectors in self.prompts.vectors.items() for i, v in enumerate(vectors)}
        moments = {f"moment.{i}.{name}": t for i, entry in self.optimiser.state_dict()["state"].items() for name, t in entry.items()}
        assert self.masks is not None
        tensors = self.lora() | words | moments | {"generator": self.generator.get_state(), "masks": self.masks.byte()}
        store.save(self.folder, tensors, {"key": self.key(), "done": self.done, "scores": list(self.scores), "history": self.history, "refreshed": self.refreshed})

    def _load_optimiser(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            if name.startswith("moment."):
                _, i, part = name.split(".")
                state.setdefault(int(i), {})[part] = t.clone()
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})

    # --- within the host's sampling ---------------------------------------------------------------------------------

    def sample(
        self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, latent_image: Tensor, denoise_mask: Any = None, disable_pbar: bool = False
    ) -> Tensor:
        """As the host calls a sampler: all steps."""
        import comfy.model_management as memory

        model = guider.inner_model
        options = options_for_gradient(extra_args["model_options"], OVERRIDE)
        options["transformer_options"][OVERRIDE] = starts_held(options["transformer_options"][OVERRIDE])
        before = self.done
        try:
            with (
                gradients(model if self.plan.spare else None, in_place=False),
                thawed(model),
                thawed(self.prompts.clip.cond_stage_model),
                adapters.worn(model.diffusion_model, self.adapters),
            ):
                latent, self.masks = plain(latent_image), plain(self.masks)
                prior = None if self.lesson.prior is None else model.process_latent_in(plain(self.lesson.prior).to(latent))
                while self.done < self.plan.steps:
                    memory.throw_exception_if_processing_interrupted()
                    self._step(model, options, latent, prior)
                    self._after(model, options, latent.device)
        except BaseException:
            if self.done > before and math.isfinite(self.history["loss"][-1]):
                self.save()
            raise
        finally:
            self.capture.words = self.capture.places = None
        if self.done > before:
            self.save()
        return latent_image

    def _step(self, model: Any, options: dict[str, Any], latent: Tensor, prior: Tensor | None) -> None:
        """One step of the optimiser."""
        refreshing = bool(self.plan.refresh and self.done and self.done % self.plan.refresh == 0)
        chances = probabilities(self.plan.scheme, len(self.every), self.scores)
        order = tuple(torch.randperm(len(self.every), generator=self.generator).tolist()) if refreshing else draw(chances, self.generator)
        self.optimiser.zero_grad()
        found = {"masked": 0.0, "prior": 0.0, "attention": 0.0}
        written = self.prompts.write(order)
        members = self._watch(written, refreshing)
        text = self._text(written)
        error = self._error(model, options, latent, text)
        assert self.masks is not None
        masked = losses.masked(error, losses.union(self.masks.to(error.device), order, (latent.shape[-2], latent.shape[-1]), self.plan.clamp))
        words = None if self.capture.words is None or self.capture.words.maps is None else self.capture.words.maps[0, :, 0]
        attention = self._attention(words, members) if words is not None and self.plan.attention else error.new_zeros(())
        (masked + self.plan.attention * attention).backward()
        self._into_words(written, text)
        found["masked"], found["attention"] = float(masked.detach()), float(attention.detach())
        places, self.capture.words, self.capture.places = self.capture.places, None, None
        if prior is not None and self.plan.prior:
            found["prior"] = self._prior(model, options, prior)
        total = found["masked"] + self.plan.prior * found["prior"] + self.plan.attention * found["attention"]
        self._move(total)
        for part, value in (("loss", total), *found.items()):
            self.history[part].append(value)
        if refreshing and places is not None and words is not None:
            self._refresh(words.detach(), members, places)
        self.done += 1

    def _watch(self, written: Written, refreshing: bool) -> dict[int, range]:
        """Read the words of this prompt in the next model call. Returns which of the groups are whose; the start token is the last."""
        shown = sorted(written.phrases)
        groups = tuple((t,) for c in shown for t in written.phrases[c])
        ends = [sum(len(written.phrases[c]) for c in shown[: i + 1]) for i in range(len(shown))]
        if self.plan.attention or refreshing:
            self.capture.words = Collector(Columns(self.layers.words, (*groups, (START,))), WINDOW)
        self.capture.places = SelfMap() if refreshing else None
        return {c: range(end - len(written.phrases[c]), end) for c, end in zip(shown, ends, strict=True)}

    def _text(self, written: Written) -> list[Any]:
        """The prompt's conditioning; where words are learned, a leaf of the graph, so that the model's pass needs nothing of the text encoder's."""
        with torch.no_grad():
            cond, facts = self.prompts.encode(written)[0]
        if not self.prompts.vectors:
            return [[cond, facts]]
        return [[cond.requires_grad_(True), facts | {"pooled_output": facts["pooled_output"].requires_grad_(True)}]]

    def _into_words(self, written: Written, text: list[Any]) -> None:
        """The gradient of a conditioning, on to the new words. Text encoders add in place, so they run again, by themselves."""
        slopes = [text[0][0].grad, text[0][1]["pooled_output"].grad]
        if self.prompts.vectors and any(slope is not None for slope in slopes):
            with gradients():
                cond, facts = self.prompts.encode(written)[0]
                pairs = [(made, slope) for made, slope in zip((cond, facts["pooled_output"]), slopes, strict=True) if slope is not None]
                torch.autograd.backward([made for made, _ in pairs], [slope for _, slope in pairs])

    def _error(self, model: Any, options: dict[str, Any], latent: Tensor, conditioning: list[Any]) -> Tensor:
        """Error [1, C, h, w] of the prediction at a random noise level, in the space the model was trained in."""
        t = int(torch.randint(0, STEPS, (1,), generator=self.generator))
        noise = torch.randn(latent.shape, generator=self.generator).to(latent)
        sigma = torch.full((1,), sigma_at(model.model_sampling, t), device=latent.device)
        noised = model.model_sampling.noise_scaling(sigma, noise, latent)
        return (predicted(model, options, noised, sigma, conditioning, latent) - latent) * self.scale(float(sigma))

    def _attention(self, words: Tensor, members: dict[int, range]) -> Tensor:
        """Mean divergence of the maps of the identifiers and of the start token from their masks."""
        assert self.masks is not None
        maps = torch.stack([*(words[members[c][0]] for c in members), words[-1]])
        return from_masks(maps, self.masks.to(maps.device)[[*members, -1]]).mean()

    def _prior(self, model: Any, options: dict[str, Any], prior: Tensor) -> float:
        """Loss on one picture of the base model; its gradient is added."""
        i = int(torch.randint(0, len(prior), (1,), generator=self.generator))
        loss = losses.prior(self._error(model, options, prior[i : i + 1], plain(self.lesson.texts[i if len(self.lesson.texts) > 1 else 0])))
        if loss.requires_grad:  # not where new words alone are learned: they are not in this prompt
            (self.plan.prior * loss).backward()
        return float(loss.detach())

    def _move(self, total: float) -> None:
        if not math.isfinite(total):
            raise LoomError(f"the loss is {total} at step {self.done + 1}; lower learning_rate, or train in fp32. The last checkpoint is kept.")
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip)
        self.optimiser.step()

    def _refresh(self, words: Tensor, members: dict[int, range], places: SelfMap) -> None:
        """New masks, if they make sense and are like the old ones."""
        assert self.masks is not None
        found = masks.make(words, [members[c] for c in self.every], places, self.rule, tuple(c.name for c in self.prompts.concepts), False)
        new = found.masks.to(self.masks.device)
        good = masks.assign.consistent(found.matrix) and min(found.shares[:-1]) >= masks.assign.LEAST
        good = good and bool((ssim(new[:-1], self.masks[:-1]) >= self.plan.likeness).all())
        self.refreshed.append((self.done + 1, good))
        if good:
            self.masks, self.scores = new, found.scores

    def _after(self, model: Any, options: dict[str, Any], device: torch.device) -> None:
        """What is due between two steps."""
        last = self.done == self.plan.steps
        if self.sketch is not None and self.plan.preview and (self.done % self.plan.preview == 0 or last):
            with torch.no_grad():
                self.sketch(self, model, options, device)
        if self.plan.save and self.done % self.plan.save == 0 and not last:
            self.save()
        self.show(self)

    # --- masks at the beginning -------------------------------------------------------------------------------------

    def _conditioning(self) -> list[Any]:
        with torch.no_grad():
            return self.prompts.encode(self.prompts.write(self.every))

    def _first_masks(self) -> None:
        """By the words that the new ones begin with; where masks are given, these, and the attention inside them."""
        written = self.prompts.write(self.every)
        members, groups = masks.grouped([written.phrases[c] for c in self.every], self.layers)
        seen = look(self.model, self._conditioning(), self.lesson.latent, self.layers, groups, self.rule.timestep, self.rule.seed, self.rule.looks)
        found = masks.make(seen.words, members, seen.places, self.rule, tuple(c.name for c in self.prompts.concepts), False, seen.sigma)
        if self.lesson.masks is None:
            found.insist()
            self.masks, self.scores = found.masks.cpu(), found.scores
            return
        self.masks = masks.given(self.lesson.masks, seen.places.grid, [c.name for c in self.prompts.concepts])
        self.scores = masks.inside(found.cross[:-1], self.masks[:-1].to(found.cross.device))


def predicted(model: Any, options: dict[str, Any], noised: Tensor, sigma: Tensor, conditioning: list[Any], like: Tensor) -> Tensor:
    """The clean latent a model sees in ``noised``, without CFG. Differentiable in the conditioning and in what the model wears."""
    from comfy.sampler_helpers import convert_cond
    from comfy.samplers import calc_cond_batch, process_conds

    entries = process_conds(model, noised, {"positive": convert_cond(conditioning)}, noised.device, latent_image=like, seed=0)["positive"]
    (clean,) = calc_cond_batch(model, [[positive_only(entry) for entry in entries]], noised, sigma, options)
    return clean  # type: ignore[no-any-return]


def starts_held(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An attention override in which keys and values of the text's start tokens are constants of the gradient."""

    def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        mark = running(kwargs.get("transformer_options") or {})
        if mark is not None and mark.hint == "cross":
            k, v = start_held(k, 1), start_held(v, 1)
        return attention(func, q, k, v, heads, *args, **kwargs)

    return override


def check_refresh(plan: Plan, found: Tensor | None) -> None:
    """Raise LoomError where masks are too small to be compared."""
    if plan.refresh and found is not None and min(found.shape[1:]) < SIDE:
        raise LoomError(f"masks of {found.shape[2]} x {found.shape[1]} cells are too small to be looked for anew; set refresh_every to 0, or train on a larger picture.")
