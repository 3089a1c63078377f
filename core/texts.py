"""Texts beside the prompt: read from a conditioning, inside a cross-attention, or joined to one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import LoomError

if TYPE_CHECKING:
    from .call import AttentionCall


def projected(call: AttentionCall, owner: str, context: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [1, H, M, D] of a text [1, M, C] in this block: the same at every step, so kept for the run.

    The text is kept by identity: hand in the same tensor at every call.
    """
    project = call.project
    if project is None:
        raise ValueError(f"{call.block} {call.kind} reads no text")

    def make() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            made = project(context.to(device=call.device, dtype=call.dtype, copy=True))
        k, v = (x.unflatten(-1, (call.heads, -1)).transpose(1, 2) for x in made)
        return k, v

    key = (owner, call.block, call.turn, id(context), str(call.device), call.dtype)
    return call.kept(key, make)


def elements(call: AttentionCall) -> list[range]:
    """Batch elements of each conditioning in the call."""
    n = call.batch // max(1, len(call.rows))
    return [range(i * n, (i + 1) * n) for i in range(len(call.rows))]


def single(conditioning: Any, name: str) -> tuple[Tensor, dict[str, Any]]:
    """The text [B, M, C] of a host conditioning and what goes with it. Raises LoomError for an empty one and for one made of several."""
    if len(conditioning) != 1:
        raise LoomError(f"the {name} consists of {len(conditioning)} conditionings; connect one text encoder, without Combine nodes behind it.")
    text, facts = conditioning[0]
    return text, facts


def text_of(conditioning: Any, name: str) -> Tensor:
    """The text [1, M, C] of a host conditioning, less the padding that its mask marks at the end. ``name`` is for messages.

    Raises LoomError for an empty conditioning and for one made of several.
    """
    text, facts = single(conditioning, f"{name} text")
    mask = facts.get("attention_mask")
    if mask is None:
        return text[:1]
    used = int((mask[:1].reshape(-1) > 0).sum())
    if used == 0 or not bool((mask.reshape(mask.shape[0], -1)[0, :used] > 0).all()):
        raise LoomError(f"the mask of the {name} text leaves out tokens in its middle, which is not supported; connect a plain text encoder.")
    return text[:1, :used]


def joined(base: Any, texts: list[Tensor], until: float) -> Any:
    """A conditioning that is ``texts`` [1, M_i, C], one behind the other, up to ``until`` of the sampling (0 to 1) and ``base`` from there.

    Everything else, pooled vectors and guidance included, stays as in ``base``.
    """
    out = []
    for prompt, facts in base:
        start, end = float(facts.get("start_percent", 0.0)), float(facts.get("end_percent", 1.0))
        text = torch.cat([t.to(prompt) for t in texts], 1).expand(prompt.shape[0], -1, -1)
        rest = {key: value for key, value in facts.items() if key != "attention_mask"}
        if start < until:
            out.append([text, rest | {"start_percent": start, "end_percent": min(end, until)}])
        if end > until:
            out.append([prompt, facts | {"start_percent": max(start, until), "end_percent": end}])
    return out
