"""Which place belongs to which thing, and whether the answer makes sense.

Source: AttenCraft, arXiv 2405.17965, steps 6 and 7 of its mask creation, for any number of things. Classes are the concepts in their order and
the background last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LoomError

LEAST = 0.005
"""Share of the picture below which a concept's mask is taken for a failure."""


def assigned(refined: Tensor, tau: float) -> Tensor:
    """Masks bool [n, Y, X] of maps [n, Y, X]: a place is a class's if its map exceeds every other one there by more than ``tau``.

    Places won by nobody are in no mask, so masks never overlap.
    """
    top = refined.topk(2, 0).values
    won = (top[0] - top[1]) > tau
    return (torch.arange(len(refined), device=refined.device)[:, None, None] == refined.argmax(0)) & won


def confusion(refined: Tensor, masks: Tensor) -> Tensor:
    """[n, n]: in row k what every map sums to inside the mask of class k."""
    return torch.einsum("kyx,cyx->kc", masks.to(refined), refined)


def consistent(matrix: Tensor) -> bool:
    """Whether each class's mask is led by another map."""
    return len(set(matrix.argmax(1).tolist())) == len(matrix)


def table(matrix: Tensor, names: list[str]) -> str:
    """The matrix with its rows scaled to the sum 1, as text."""
    shares = matrix / matrix.sum(1, keepdim=True).clamp_min(1e-20)
    width = max(len(name) for name in names)
    lines = [" " * width + "  " + "  ".join(f"{name:>{max(5, len(name))}}" for name in names)]
    lines += [f"{name:<{width}}  " + "  ".join(f"{float(v):>{max(5, len(n))}.2f}" for v, n in zip(row, names, strict=True)) for name, row in zip(names, shares, strict=True)]
    return "\n".join(lines)


def insist(masks: Tensor, matrix: Tensor, names: list[str], least: float = LEAST) -> None:
    """Raise LoomError where a concept's mask is next to nothing, or two classes are led by one map. The last class is the background."""
    shares = masks.float().mean((1, 2)).tolist()
    advice = "use another timestep or seed, a lower threshold, or a word that says more plainly what it is"
    for name, share in zip(names[:-1], shares[:-1], strict=True):
        if share < least:
            raise LoomError(f"the mask of '{name}' covers {100 * share:.2f} % of the picture, and at least {100 * least:g} % is needed: the model does not see it apart; {advice}.")
    if not consistent(matrix):
        raise LoomError(f"the masks do not tell the concepts apart; {advice}. Share of each map (columns) in each mask (rows):\n{table(matrix, names)}")
