"""A backward pass for the fused operations of later hosts that have none and that a host calls without asking.

Hosts after 0.3.75 run the norm and the rotation of queries and keys as one operation of comfy-kitchen. Where a training is announced
they take the separate ones instead (:func:`differentiable.with_backward`), but Cosmos Predict2 and JoyImage ask nobody. Here those
operations learn their gradient, by torch's own way of adding one to a foreign operation: the forward pass stays theirs.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

OPERATIONS = {"rms_rope_split_half": True, "rms_rope": False}
"""Operations of comfy-kitchen on (q, k, table, q_weight, k_weight, epsilon[, width]) -> whether a pair of channels lies half a width apart."""


def rotated(x: Tensor, table: Tensor, weight: Tensor, epsilon: float, width: int = 0, halves: bool = True) -> Tensor:
    """Root-mean-square norm over the channels, then pairs of the first n channels turned by ``table``.

    x [..., D]; table [..., n/2, 2, 2], broadcastable to x; weight [D]; width: n, 0 = D. halves: channels (i, i + n/2) are a pair,
    otherwise (2i, 2i + 1).
    """
    normed = torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, epsilon)
    n = width or x.shape[-1]
    pairs = normed[..., :n].unflatten(-1, (2, -1) if halves else (-1, 2)).to(table.dtype)
    form = "...pij,...jp->...ip" if halves else "...pij,...pj->...pi"
    turned = torch.einsum(form, table.expand(*pairs.shape[:-2], *table.shape[-3:]), pairs).flatten(-2)
    return torch.cat([turned.to(x.dtype), normed[..., n:].to(x.dtype)], -1)


def learn() -> None:
    """Give the operations their gradients, once; nothing where they are not there or have them."""
    if "comfy_kitchen" in sys.modules:
        for name, halves in OPERATIONS.items():
            _learn(name, halves)


@cache
def _learn(name: str, halves: bool) -> None:
    operation = getattr(torch.ops.comfy_kitchen, name, None)
    if operation is not None and not _has_gradient(operation):
        torch.library.register_autograd(f"comfy_kitchen::{name}", partial(_backward, halves), setup_context=_keep)


def _has_gradient(operation: Any) -> bool:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, 1, 1, 2, requires_grad=True)
        try:
            operation(x, x, torch.eye(2).view(1, 1, 1, 1, 2, 2), torch.ones(2), torch.ones(2), 1e-6)[0].sum().backward()
        except RuntimeError:
            return False
    return True


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, table, q_weight, k_weight, epsilon, *width = inputs
    ctx.save_for_backward(q, k, table, q_weight, q_weight if k_weight is None else k_weight)
    ctx.epsilon, ctx.width = epsilon, width[0] if width else 0
    ctx.none = (None,) * (len(inputs) - 2)


def _backward(halves: bool, ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    q, k, table, *weights = ctx.saved_tensors
    found: list[Tensor | None] = [None, None]
    for i, (x, weight, gradient) in enumerate(zip((q, k), weights, gradients, strict=True)):
        if gradient is not None and ctx.needs_input_grad[i]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (found[i],) = torch.autograd.grad(rotated(leaf, table, weight, ctx.epsilon, ctx.width, halves), leaf, gradient)
    return (*found, *ctx.none)
