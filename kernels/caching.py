"""Remembering derived data: by arguments where they are hashable, by identity where they are plan parts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

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
