"""One attention call, executed as its plan says, by the first backend that can."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .backends import Backend, BackendUnavailable, Call, backends
from .check import check_call
from .debug import FoundInDebugMode, check_plan, check_values, debugging
from .plan import AttentionPlan
from .quant import QUANTISED
from .stages import run_stages


@dataclass
class Trace:
    """What happened in one call: the backend that ran, those that did not with the reason, and the probes by name."""

    backend: str = ""
    declined: list[tuple[str, str]] = field(default_factory=list)
    probes: dict[str, Tensor] = field(default_factory=dict)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
    dense: Callable[..., Tensor] | None = None,
    trace: Trace | None = None,
    quant: Literal["none", "int8_qk", "int8_qk_fp8_pv"] = "none",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of ``q [B,H,Nq,D]`` over ``k, v [B,Hk,Nk,D]`` (Hk divides H) as ``plan`` asks.

    scale: factor on the logits, default ``D**-0.5``. dense: the host's own attention, called as ``dense(q, k, v)`` or, if it
    has a ``mask`` parameter and one is needed, ``dense(q, k, v, mask=additive [B|1,H|1,1,Nk])``; it scales by ``D**-0.5`` and
    returns [B,H,Nq,D]. backend: "auto" or a name from :func:`kernels.backends.backends`.
    Returns o ``[B,H,Nq,D]`` in q's dtype and memory layout and, with ``return_lse``, the natural log-sum-exp fp32 [B,H,Nq].
    The caller's tensors are never written to. quant: "int8_qk" forms the logits from eight-bit q and k, "int8_qk_fp8_pv" also
    the sums from eight-bit weights and values, where that fits (``kernels/quant.py``); ``trace.declined`` says where it does not.
    Neither is ever chosen unasked.

    Raises ValueError where shapes do not fit, and :class:`BackendUnavailable` where a backend chosen by name cannot run.

    >>> out = attend(q, k, v, AttentionPlan(key_bias=bias), trace=(t := Trace()))
    >>> t.backend, t.declined
    ('triton', [('host', 'the caller passed no dense attention')])
    """
    check_call(q, k, v, plan, scale)
    if debugging():
        check_values(q, k, v)
        check_plan(plan.blocks)
    if plan.probes and trace is None:
        raise ValueError("plan.probes has nowhere to go: pass trace=Trace() to receive it")
    trace = Trace() if trace is None else trace
    if quant != "none" and quant not in QUANTISED:
        raise ValueError(f"quant is {quant!r}; expected 'none', {', '.join(map(repr, QUANTISED))}")
    if plan.empty and quant == "none" and dense is not None and backend in ("auto", "host") and not return_lse and scale in (None, q.shape[-1] ** -0.5):
        trace.backend = "host"
        return dense(q, k, v)

    call = Call(q, k, v, plan, q.shape[-1] ** -0.5 if scale is None else float(scale), return_lse, dense, backend != "auto")
    # A surrounding autocast would lower the fp32 stages to half precision.
    with torch.autocast(q.device.type, enabled=False):
        return _run_explicit(call, backend, trace, quant) if call.explicit else _run_auto(call, trace, quant)


def _run_explicit(call: Call, name: str, trace: Trace, quant: str) -> Tensor | tuple[Tensor, Tensor]:
    known = {b.name: b for b in backends()}
    if quant != "none" and name != "triton" and name in known:
        raise BackendUnavailable(f"the attention backend {name!r} does not quantise; choose auto or triton with quant={quant!r}")
    if quant != "none":
        known["triton"] = QUANTISED[quant]
    if name not in known:
        raise BackendUnavailable(f"there is no attention backend {name!r}; choose auto, {', '.join(known)}")
    reason = known[name].refuse(call)
    if reason:
        raise BackendUnavailable(f"the attention backend {name!r} cannot run this call: {reason}")
    return _execute(known[name], call, trace, careful=False)


def _run_auto(call: Call, trace: Trace, quant: str) -> Tensor | tuple[Tensor, Tensor]:
    for b in backends() if quant == "none" else [QUANTISED[quant], *backends()]:
        reason = b.refuse(call) or _known_failure(b, call)
        if reason is None and not b.may_fail:
            return _execute(b, call, trace, careful=False)
        if reason is None:
            try:
                return _execute_with_retry(b, call, trace)
            except _NOT_ITS_FAULT:
                raise
            except Exception as error:  # whatever a compiler or driver throws: the reason is kept and shown
                reason = f"it failed: {_first_line(error)}"
                _remember_failure(b, call, reason)
        trace.declined.append((b.name, reason))
    raise BackendUnavailable("no attention backend can run this call: " + "; ".join(f"{n}: {r}" for n, r in trace.declined))


# The next backend needs no less memory, and the host knows what to free; a wrong value is wrong for all of them.
_NOT_ITS_FAULT = (torch.OutOfMemoryError, FoundInDebugMode)


def _execute_with_retry(b: Backend, call: Call, trace: Trace) -> Tensor | tuple[Tensor, Tensor]:
    careful = _is_fragile(b, call)
    try:
        return _execute(b, call, trace, careful)
    except _NOT_ITS_FAULT:
        raise
    except Exception:
        if careful:
            raise
        result = _execute(b, call, trace, careful=True)
        with _lock:
            _fragile.add(_failure_key(b, call))
        return result


def _execute(b: Backend, call: Call, trace: Trace, careful: bool) -> Tensor | tuple[Tensor, Tensor]:
    call = b.recast(call)

    def core(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool) -> tuple[Tensor, Tensor | None]:
        if debugging() and plan.blocks is not call.plan.blocks:
            check_plan(plan.blocks)  # chosen during the call
        return b.run(call, q, k, v, plan, lse, careful)

    o, lse, probes = run_stages(call.q, call.k, call.v, call.plan, call.scale, core, call.return_lse, b.name, frozenset() if call.needs_grad else b.limits.fused)
    trace.backend = b.name
    trace.probes.update(probes)
    if call.return_lse:
        assert lse is not None
        return o, lse
    return o


# Launches that failed on this (backend, device, shape): not tried again in this process.
_failed: dict[tuple, str] = {}
# Launches that only the smallest settings survived: these are used at once from then on.
_fragile: set[tuple] = set()
_lock = threading.Lock()


def forget_failures() -> None:
    """Try every backend again, as in a fresh process."""
    with _lock:
        _failed.clear()
        _fragile.clear()


def _failure_key(b: Backend, call: Call) -> tuple:
    return (b.name, call.q.device, call.q.dtype, tuple(call.q.shape), tuple(call.k.shape), call.plan.features)


def _known_failure(b: Backend, call: Call) -> str | None:
    with _lock:
        return _failed.get(_failure_key(b, call))


def _is_fragile(b: Backend, call: Call) -> bool:
    with _lock:
        return _failure_key(b, call) in _fragile


def _remember_failure(b: Backend, call: Call, reason: str) -> None:
    with _lock:
        _failed[_failure_key(b, call)] = reason


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
