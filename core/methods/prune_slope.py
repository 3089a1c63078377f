"""First-order pruning, for the Attention Inspector: in a marked pass with gradients every head gets a step of length zero towards what pruning makes of it.

With O_h the output of head h and P_h what pruning puts in its place, the pass computes ``O_h + g_h (P_h - O_h)`` with g_h = 0, so its result
is that of the unpruned model and ``dS / dg_h = <dS / dO_h, P_h - O_h>`` for any number S made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..guidance import ExtraPass
from .prune import HeadPruning
from .prune_part import WHOLE

if TYPE_CHECKING:
    from ..call import AttentionCall, Seen
    from ..weave import Draft


@dataclass
class SlopePass(ExtraPass):
    """samples: B of the latent; layers: which are asked about; gates: layer -> g [B, H], zeros, of the layers reached."""

    samples: int = 1
    layers: frozenset[int] = frozenset()
    gates: dict[int, Tensor] = field(default_factory=dict)

    def gate(self, call: AttentionCall) -> Tensor:
        """g for the batch of this call: [batch, H]. The host stacks conditionings, each with all samples, each with rows of its own (frames)."""
        made = self.gates.get(call.block.ordinal)
        if made is None:
            made = self.gates[call.block.ordinal] = torch.zeros(self.samples, call.heads, device=call.device, requires_grad=True)
        stacked = max(1, len(call.rows))
        return made.repeat_interleave(call.batch // (stacked * self.samples), 0).repeat(stacked, 1)


@dataclass(frozen=True)
class PruneSlope(HeadPruning):
    """A step of length zero for every head of the pass's layers."""

    owner: ClassVar[str] = "Attention Inspector, first order"

    def wants(self, call: AttentionCall) -> bool:
        """What pruning would change."""
        return isinstance(call.extra, SlopePass) and call.block.ordinal in call.extra.layers and self.has(call)

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Beside the plan: zeros that depend on the gates, once the result is there."""
        pass_ = call.extra
        results: list[Tensor] = []
        assert isinstance(pass_, SlopePass)
        pass_.touched.add(call.block)

        def step(seen: Seen) -> Tensor:
            out = results.pop().detach()
            if self.part == WHOLE:
                direction = toward(self.prune, seen.v.detach(), out) - out
            else:
                with torch.no_grad():
                    direction = -self.share(call, seen, draft)
            return _Step.apply(pass_.gate(call), direction)  # type: ignore[no-any-return, no-untyped-call]

        draft.result(self.owner, results.append)
        draft.tap(self.owner, step)


def toward(prune: str, v: Tensor, out: Tensor) -> Tensor:
    """What pruning puts in the place of every head's output, broadcastable to it. v [B, Hk, N, D]; out [B, H, N, D]."""
    if prune == "zero":
        return torch.zeros_like(out[:1, :1, :1])
    v = v.repeat_interleave(out.shape[1] // v.shape[1], 1)
    return v if prune == "identity" else v.mean(2, keepdim=True, dtype=torch.float32).to(out.dtype)


class _Step(torch.autograd.Function):
    """Zeros [batch, H, N, D] for gates [batch, H] of 0. The slope is summed in fp32: in fp16 it would overflow."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, direction: Tensor) -> Tensor:
        """gate is known to be zero."""
        ctx.save_for_backward(direction)
        return torch.zeros_like(direction)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """<slope, direction> of every head."""
        (direction,) = ctx.saved_tensors
        work = torch.float64 if slope.dtype == torch.float64 else torch.float32
        return (slope.to(work) * direction.to(work)).sum((2, 3)), None
