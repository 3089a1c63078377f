"""The argument list of the host's attention override: the only file that knows it.

``override(func, q, k, v, heads, mask=None, *, skip_reshape, skip_output_reshape, ...)``: heads and mask come by position
in some families and by keyword in others; tensors are [B, H, N, D] with ``skip_reshape`` and [B, N, H*D] without. Unknown
keyword arguments are kept and handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Signature:
    """One call of the override, in its own words and in ours.

    q [B, H, Nq, D], k, v [B, Hk, Nk, D]: views of the caller's tensors, never copies. mask: as given. scale: None = D^-0.5.
    """

    func: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    scale: float | None
    flat_in: bool
    flat_out: bool

    @property
    def options(self) -> dict[str, Any]:
        """The call's transformer_options."""
        return self.kwargs.get("transformer_options") or {}

    def stock(self, previous: Callable[..., Tensor] | None) -> Tensor:
        """The call as the host (or the override found before ours) makes it, untouched."""
        if previous is None:
            return self.func(*self.args, **self.kwargs)
        return previous(self.func, *self.args, **self.kwargs)

    def only(self, elements: tuple[int, ...]) -> Signature:
        """The same call on some elements of its batch."""
        batch, picked = self.q.shape[0], list(elements)

        def cut(x: Any) -> Any:
            return x[picked] if isinstance(x, Tensor) and x.ndim > 2 and x.shape[0] == batch else x

        kwargs = {n: cut(x) if n in _POSITIONAL else x for n, x in self.kwargs.items()}
        return read(self.func, *(cut(x) for x in self.args), **kwargs)

    def reading(self, k: Tensor, v: Tensor) -> Signature:
        """The same call on other keys and values [B, Hk, Nk, D]."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, x in (("k", k), ("v", v)):
            given = x.transpose(1, 2).flatten(2) if self.flat_in else x
            if name in kwargs:
                kwargs[name] = given
            else:
                args[_POSITIONAL.index(name)] = given
        return read(self.func, *args, **kwargs)

    def take(self, out: Tensor) -> Tensor:
        """A result in the caller's layout as [B, H, Nq, D]: the inverse of :meth:`give`."""
        return out.unflatten(-1, (self.heads, -1)).transpose(1, 2) if self.flat_out else out

    def dense(self, previous: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
        """A dense attention ``(q, k, v, mask=None) -> [B, H, N, D]`` that runs the same backend on other tensors.

        mask: additive, broadcastable to [B, H, Nq, Nk]; it replaces the call's own. Logits are scaled by D^-0.5: whoever
        wants another scale puts it into q.
        """

        def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            kwargs = {n: x for n, x in self.kwargs.items() if n not in _REPLACED}
            args = (q, k, v, self.heads)
            kwargs.update(mask=mask, skip_reshape=True)
            out = self.func(*args, **kwargs) if previous is None else previous(self.func, *args, **kwargs)
            return out.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        return run

    def give(self, out: Tensor) -> Tensor:
        """``out`` [B, H, Nq, D] in the layout the caller wants."""
        return out.transpose(1, 2).flatten(2) if self.flat_out else out

    def key_bias(self) -> Tensor | None:
        """The mask as a bias per key, fp32 [B|1, H|1, Nk].

        Raises ValueError for a mask that differs between queries: such a mask has Nq x Nk entries by nature.
        """
        mask = self.mask
        if mask is None:
            return None
        while mask.ndim < 4:
            # the host reads [Nq, Nk] as shared by all and [B, Nq, Nk] as shared by the heads
            mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
        if mask.shape[2] != 1:
            raise ValueError(f"the attention mask {tuple(self.mask.shape)} differs from query to query")  # type: ignore[union-attr]
        if mask.dtype == torch.bool:
            return torch.zeros_like(mask[:, :, 0], dtype=torch.float32).masked_fill_(~mask[:, :, 0], float("-inf"))
        return mask[:, :, 0].float()


_POSITIONAL = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
"""The order in which the host's backends take what comes by position."""

_REPLACED = {"q", "k", "v", "heads", "mask", "skip_reshape", "skip_output_reshape", "scale"}
"""What a dense call on other tensors gives anew; all other keyword arguments go through."""


def read(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Signature:
    """Read one override call. Raises TypeError if the host passes what this version does not know (report says so)."""
    given = dict(zip(_POSITIONAL, args, strict=False)) | kwargs
    missing = [n for n in _POSITIONAL[:4] if n not in given]
    if missing:
        raise TypeError(f"attention was called without {', '.join(missing)}; q, k, v and heads were expected")
    q, k, v, heads = (given[n] for n in _POSITIONAL[:4])
    mask = given.get("mask")
    flat_in, flat_out = not given.get("skip_reshape", False), not given.get("skip_output_reshape", False)
    if not all(isinstance(x, Tensor) for x in (q, k, v)):
        raise TypeError(f"attention was called with {type(q).__name__}, {type(k).__name__}, {type(v).__name__}; three tensors were expected")
    if flat_in:
        width = q.shape[-1] if q.ndim == 4 else q.shape[-1] // heads
        # SD3 hands on v with its heads apart already, [B, N, H, D]; the host's own backends view it as flat
        q, k, v = ((x if x.ndim == 4 else x.unflatten(-1, (-1, width))).transpose(1, 2) for x in (q, k, v))
    return Signature(func, args, kwargs, q, k, v, int(heads), mask, kwargs.get("scale"), flat_in, flat_out)
