"""One picture for one set of heads: the user's own model, prompts and sampler, with SoftPAG as the intervention."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..attach import attach
from ..concepts import Concept, Located, locate
from ..errors import LoomError
from ..families import family_of
from ..heads import HeadSet
from ..inspect.study import Collection
from ..methods.inspector import Inspector
from ..methods.softpag import SoftPAG
from ..schedule import BlockSelection
from .identity import digest, model_key, sample
from .scorers import Scorer, Shot


@dataclass(frozen=True, eq=False)
class Pair:
    """A prompt and a seed. text: the prompt, "" where unknown; positive, negative: host conditionings."""

    text: str
    positive: Any
    negative: Any
    seed: int


@dataclass(frozen=True)
class Sampling:
    """As the host's KSampler has them."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float = 1.0


@dataclass(frozen=True, eq=False)
class Bench:
    """All that stays the same in a search. latent: the host's LATENT; push: SoftPAG with no heads yet; clip: for scorers that look words up."""

    model: Any
    vae: Any
    latent: dict[str, Any]
    pairs: tuple[Pair, ...]
    sampling: Sampling
    push: SoftPAG
    scorer: Scorer
    clip: Any = field(default=None, repr=False)

    def layers(self, blocks: BlockSelection) -> tuple[tuple[int, int], ...]:
        """(layer, heads) of the chosen blocks. Raises LoomError where none is, or where a part names none."""
        diffusion = self.model.get_model_object("diffusion_model")
        family = family_of(diffusion)
        every = family.blocks(diffusion)
        missing = blocks.unmatched(every)
        if missing:
            raise LoomError(f"blocks '{missing[0]}' selects nothing; this {family.name} model has layers 0 to {len(every) - 1}.")
        return tuple((b.ordinal, family.heads(diffusion, b)) for b in every if b in blocks)

    def shoot(self, heads: str, pair: int) -> tuple[Tensor, float]:
        """The picture [N, h, w, 3] fp32 with these heads weakened (none: without guidance), and its score."""
        chosen = HeadSet.parse(heads)
        model = attach(self.model, replace(self.push, heads=chosen)) if chosen.items else self.model
        seen = Collection()
        if self.scorer.reads_attention:
            model = attach(model, Inspector(percents=(0.5,), words=self._words(self.pairs[pair]), into=seen))
        images = self._decode(self._sample(model, self.pairs[pair]))
        return images, self.scorer.score(Shot(images, self.pairs[pair].text, seen.last))

    def _sample(self, model: Any, pair: Pair) -> Tensor:
        import comfy.sample

        s = self.sampling
        start = comfy.sample.fix_empty_latent_channels(model, self.latent["samples"])
        noise = comfy.sample.prepare_noise(start, pair.seed, self.latent.get("batch_index"))
        return comfy.sample.sample(  # type: ignore[no-any-return]
            model, noise, s.steps, s.cfg, s.sampler, s.scheduler, pair.positive, pair.negative, start,
            denoise=s.denoise, noise_mask=self.latent.get("noise_mask"), disable_pbar=True, seed=pair.seed,
        )  # fmt: skip

    def _decode(self, latent: Tensor) -> Tensor:
        images = self.vae.decode(latent)
        return images.reshape(-1, *images.shape[-3:])[..., :3].float().cpu().clamp(0, 1)  # type: ignore[no-any-return]

    def _words(self, pair: Pair) -> Located:
        if self.clip is None or not pair.text:
            raise LoomError("prompt attention needs the prompts as text: connect clip and write them into 'prompts', or choose another goal.")
        found = locate(self.clip, pair.text, list(self.scorer.words), pair.positive[0][0].shape[1])
        return found if found.concepts else replace(found, concepts=(Concept("prompt", found.words, ()),))

    def key(self) -> str:
        """What must be the same for scores to be comparable: model, inputs and settings as a hash."""
        sha = hashlib.sha256()
        for part in (self.sampling, self.push, self.scorer.key, model_key(self.model), self.latent, [(p.text, p.positive, p.negative, p.seed) for p in self.pairs]):
            digest(part, sha.update)
        weights = getattr(self.vae, "first_stage_model", None)  # its other attributes change in use
        sample((type(self.vae).__name__, type(weights).__name__, None if weights is None else dict(weights.state_dict())), sha.update, values=4)
        return sha.hexdigest()[:16]


def with_prompts(clip: Any, prompts: list[str], positive: Any) -> list[tuple[str, Any]]:
    """(text, conditioning) of each prompt, with everything but the text (guidance, ControlNet, areas) taken from ``positive``."""
    settings = {name: value for name, value in positive[0][1].items() if name != "pooled_output"}
    return [(text, [[cond, settings | own] for cond, own in clip.encode_from_tokens_scheduled(clip.tokenize(text))]) for text in prompts]


def fitting(prompts: list[tuple[str, Any]], negative: Any, count: int, seed: int) -> tuple[Pair, ...]:
    """``count`` pairs: prompts in turn, seeds counted up from ``seed``. Raises LoomError where a prompt would stay unused."""
    if count < len(prompts):
        raise LoomError(f"{len(prompts)} prompts were given and pairs is {count}; set pairs to {len(prompts)} or more, so that each is used.")
    return tuple(Pair(*prompts[j % len(prompts)], prompts[j % len(prompts)][1] if negative is None else negative, seed + j) for j in range(count))
