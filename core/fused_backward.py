"""A backward pass for the one fused operation of later hosts that has none.

Hosts after 0.3.75 run the norm and the rotation of queries and keys as one operation of comfy-kitchen. Where a training is announced
they take the separate ones instead (:func:`differentiable.with_backward`), but Cosmos Predict2 asks nobody. Here that operation
learns its gradient, by torch's own way of adding one to a foreign operation: the forward pass stays theirs.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

NAME = "comfy_kitchen::rms_rope_split_half"


def rotated(x: Tensor, table: Tensor, weight: Tensor, epsilon: float, width: int = 0) -> Tensor:
    """Root-mean-square norm over the channels, then channels (i, i + n/2) of the first n turned by ``table``.

    x [..., D]; table [..., n/2, 2, 2], broadcastable to x; weight [D]; width: n, 0 = D.
    """
    normed = torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, epsilon)
    n = width or x.shape[-1]
    pairs = normed[..., :n].unflatten(-1, (2, -1)).to(table.dtype)
    turned = torch.einsum("...pij,...jp->...ip", table.expand(*pairs.shape[:-2], *table.shape[-3:]), pairs).flatten(-2)
    return torch.cat([turned.to(x.dtype), normed[..., n:].to(x.dtype)], -1)


def learn() -> None:
    """Give the operation its gradient, once; nothing where it is not there or has one."""
    if "comfy_kitchen" in sys.modules:
        _learn()


@cache
def _learn() -> None:
    operation = getattr(torch.ops.comfy_kitchen, NAME.split("::")[1], None)
    if operation is not None and not _has_gradient(operation):
        torch.library.register_autograd(NAME, _backward, setup_context=_keep)


def _has_gradient(operation: Any) -> bool:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, 1, 1, 2, requires_grad=True)
        try:
            operation(x, x, torch.eye(2).view(1, 1, 1, 1, 2, 2), torch.ones(2), torch.ones(2), 1e-6, 0)[0].sum().backward()
        except RuntimeError:
            return False
    return True


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, table, q_weight, k_weight, epsilon, width = inputs
    ctx.save_for_backward(q, k, table, q_weight, q_weight if k_weight is None else k_weight)
    ctx.rest = epsilon, width


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    q, k, table, *weights = ctx.saved_tensors
    found: list[Tensor | None] = [None, None]
    for i, (x, weight, gradient) in enumerate(zip((q, k), weights, gradients, strict=True)):
        if gradient is not None and ctx.needs_input_grad[i]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (found[i],) = torch.autograd.grad(rotated(leaf, table, weight, *ctx.rest), leaf, gradient)
    return (*found, None, None, None, None, None)
