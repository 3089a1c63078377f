"""Remembering derived data: by arguments where they are hashable, by identity where they are plan parts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch

Made = TypeVar("Made")


def remembered(maxsize: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """A cache for functions that make tensors from hashable arguments.

    The host runs nodes under inference mode; a tensor made there could never take part in a gradient, so what outlives
    the call is made outside of it.
    """

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        @lru_cache(maxsize)
        @wraps(make)
        def outside(*args: Any) -> Made:
            with torch.inference_mode(False):
                return make(*args)

        return outside

    return decorate


_store: WeakKeyDictionary = WeakKeyDictionary()
_lock = threading.Lock()


def with_part(part: Any, key: Any, compute: Callable[[], Made]) -> Made:
    """Derived data of a plan part, kept as long as the part lives. Parts are immutable, so identity is a sound key."""
    with _lock:
        found = _store.setdefault(part, {}).get(key)
    if found is None:
        found = compute()
        with _lock:
            _store[part][key] = found
    return found


def kept_with(part: Any, key: Any) -> Any:
    """What :func:`with_part` has kept under ``key``, or None."""
    with _lock:
        return _store.get(part, {}).get(key)


def with_parts(parts: tuple[Any, ...], key: Any, compute: Callable[[], Made]) -> Made:
    """Derived data of several plan parts, kept with the first as long as all of them live."""
    first, *others = parts
    with _lock:
        kept = _store.setdefault(first, {})
        for old in [k for k in kept if isinstance(k, _Joint) and any(r() is None for r in k.others)]:
            del kept[old]
    return with_part(first, _Joint(key, tuple(ref(o) for o in others)), compute)


class _Joint:
    """A key that names other parts by identity without keeping them alive."""

    def __init__(self, key: Any, others: tuple[ref, ...]) -> None:
        self.key, self.others = key, others
        self.hash = hash((key, others))

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Joint) and self.key == other.key and self.others == other.others
