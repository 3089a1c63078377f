"""Self-recurrent guidance: the subject of noisy frames is drawn towards what is remembered of it at the clean end of the queue.

Source: "Ouroboros-Diffusion", arXiv 2501.09019. With k_l the mean key of the subject in layer l of a window, and K_l its running mean
over the frames that left::

    L = mean over l of  mean((k_l - K_l)^2),      g = dL/dx,      x' <- x' - gamma sigma' sigma g

with g clipped to an RMS of 1 per slot, in units of a unit-variance latent. The same formula holds for models that predict noise (the
paper's VP form, in the host's units) and for flow models. The paper averages keys of whole frames; here the mean keys themselves are
averaged, which is the same for a mask that stands still and takes kilobytes in place of gigabytes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..call import Block, QueueWindow
from ..columns import Finished
from ..differentiable import explained, gradients, options_for_gradient, plain, positive_only, thawed
from ..errors import LoomError
from ..methods.endless_subject import EndlessSubject, Reading
from .per_frame import Conds, Frames

if TYPE_CHECKING:
    from ..families.base import Family

OVERRIDE = "optimized_attention_override"
Memory = dict[str, Tensor]
UNIT_STEP = 0.05
"""Size of a normalised step at gamma 1, as a share of a unit-variance latent."""


def name(block: Block) -> str:
    """Under which a block's mean key is remembered."""
    return f"subject.{block.ordinal}"


def remembered(old: Memory, keys: dict[Block, Tensor], lam: float) -> Memory:
    """The memory after a frame: ``lam old + (1 - lam) new``; what was not known begins with the new."""
    out = dict(old)
    for block, new in keys.items():
        key = name(block)
        out[key] = lam * old[key] + (1 - lam) * new.to(old[key]) if key in old else new.detach().clone()
    return out


def learned(method: EndlessSubject, window: QueueWindow, memory: Memory) -> Memory:
    """The memory after a window has run: the head's adds the subject's look; any other, or none found, leaves it as it was."""
    reading: Reading | None = window.notes.get(method.owner)
    if window.number != 0 or reading is None:
        return memory
    return remembered(memory, reading.keys, method.lam) | reading.segments


def loss(keys: dict[Block, Tensor], memory: Memory) -> Tensor:
    """L of the layers both know; keys [b, C] each. A number with a graph."""
    parts = [(key - memory[name(block)].to(key)).pow(2).mean() for block, key in keys.items() if name(block) in memory]
    return torch.stack(parts).mean()


def change(gradient: Tensor, sigma: Tensor, target: Tensor, unit: Tensor, gamma: float, normalised: bool) -> Tensor:
    """What is taken off x' [B, C, f, H, W]. sigma, target [f]; unit [f]: spread of a latent at that level in the host's units.

    The gradient with respect to a unit-variance latent is ``unit`` times the given one; its RMS per slot is at most 1, or with
    ``normalised`` just :data:`UNIT_STEP`. Slots with a gradient of 0 stay.
    """
    along = [v.view(1, 1, -1, 1, 1).to(gradient) for v in (sigma, target, unit)]
    g = gradient * along[2]
    size = g.pow(2).mean((1, 3, 4), keepdim=True).sqrt()
    g = UNIT_STEP * g / size.clamp_min(1e-30) if normalised else g / size.clamp_min(1.0)
    return gamma * along[1] * along[0] / along[2] * g


class Guidance:
    """Takes the gradient of one window."""

    def __init__(self, calls: Frames, method: EndlessSubject, family: Family, diffusion: Any) -> None:
        self.calls, self.method = calls, method
        self.blocks = len(family.blocks(diffusion))

    def due(self, window: QueueWindow, memory: Memory) -> bool:
        """Whether a window is guided: gamma is on, it is one of the chosen, and something is remembered."""
        return self.method.gamma > 0 and self.method.acts(window) and any(key.startswith("subject.") for key in memory)

    def gradient(self, x: Tensor, sigma: Tensor, conds: Conds, window: QueueWindow, memory: Memory) -> Tensor | None:
        """dL/dx for x [B, C, f, H, W], None where the subject is not found. Only the positive prompt runs. Raises LoomError."""
        from comfy.samplers import calc_cond_batch

        entry = self._entry(conds)
        model = self.calls.guider.inner_model
        reading = self.method.begun(self.blocks, window.scene, differentiable=True)
        advice = "switch spare_memory on, choose earlier blocks, a smaller window, or guidance 0"
        graph = gradients(model if self.method.spare_memory else None)
        with explained(self.method.owner, advice, ", or set guidance to 0"), graph, thawed(model):
            own = replace(window, notes={self.method.owner: reading}, memory={key: plain(value) for key, value in window.memory.items()})
            y = x.detach().clone().requires_grad_(True)
            options = options_for_gradient(self.calls.call_options(plain(sigma).to(y.device), window.frames, own), OVERRIDE)
            middle = plain(sigma).median().to(y).expand(y.shape[0]).clone()
            with suppress(Finished):
                calc_cond_batch(model, [[positive_only(entry)]], y, middle, options)
            if not reading.keys:
                return None
            (g,) = torch.autograd.grad(loss(reading.keys, {key: plain(value) for key, value in memory.items()}), y)
        return g

    def _entry(self, conds: Conds) -> dict[str, Any]:
        """The positive prompt for the whole picture."""
        for entry in conds.get("positive", ()):
            if "area" not in entry and "mask" not in entry:
                if entry.get("hooks") is not None:
                    raise LoomError(f"{self.method.owner} cannot take a gradient through a prompt that carries hooks (scheduled LoRA); take the hooks off the positive prompt.")
                return entry
        raise LoomError(f"{self.method.owner} needs a positive prompt for the whole picture; all of them are limited to an area or a mask.")
