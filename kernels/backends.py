"""Who can execute a call: a registry of backends that state their limits as data and refuse with a reason.

A backend gives (o, lse) for the logit parts of a plan; everything else runs around it (``kernels/stages.py``). To add one,
write a runner, describe its :class:`Limits`, and :func:`register` it; its priority decides where "auto" tries it.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from . import flex, kitchen
from .additive import additive_mask, mask_size
from .blocks import BlockPlan
from .chunked import chunked_attend
from .plan import AttentionPlan
from .stages import AROUND, BESIDE, CORE_PARTS, FUSABLE, WITH_LSE

MASK_BYTES = 512 * 2**20
"""Largest additive mask that is ever written out."""

HALF_AND_FULL = frozenset({torch.float16, torch.bfloat16, torch.float32})
EVERY_PART = AROUND | WITH_LSE | BESIDE | CORE_PARTS
EVERY_LOGIT_DETAIL = frozenset({"frames", "distance", "positive_only", "center_keys", "scale"})
ONLY_SCALE = frozenset({"positive_only", "center_keys", "scale"})
"""Without a table, centring and the sign test change nothing, and the scale is a factor on q."""


class BackendUnavailable(ValueError):
    """The backend that was asked for by name cannot execute the call; the message says why."""


@dataclass(frozen=True, eq=False)
class Call:
    """One validated attention call, as backends see it."""

    q: Tensor
    k: Tensor
    v: Tensor
    plan: AttentionPlan
    scale: float
    return_lse: bool = False
    dense: Callable[..., Tensor] | None = None
    explicit: bool = False

    @property
    def needs_grad(self) -> bool:
        """True where autograd will ask for a gradient of the result."""
        bias = self.plan.key_bias
        sources = [self.q, self.k, self.v, *([bias] if bias is not None else [])]
        sources += [x for e in self.plan.extra_kv for x in (e.k, e.v, e.bias) if x is not None]
        sources += [x for a in self.plan.asides for x in (a.k, a.v)]
        sources += [] if (affine := self.plan.row_affine) is None else [affine.scale, affine.residual]
        return torch.is_grad_enabled() and any(x.requires_grad for x in sources)

    @property
    def needs_lse(self) -> bool:
        """True where some stage reads the log-sum-exp."""
        return self.return_lse or bool(self.plan.features & WITH_LSE) or sparse_details(self.plan)[0]

    @property
    def tokens_first(self) -> bool:
        """True where q is a [B,N,H*D] projection seen as [B,H,N,D]; the output then takes the same layout."""
        return self.q.stride(1) < self.q.stride(2)


@dataclass(frozen=True)
class Limits:
    """What a backend can execute, as data.

    features: plan parts by their field names. modulation: details of a modulation by their field names.
    dtypes: None = any floating type. widths: least and greatest head width. devices: device types, None = any.
    mask_bytes: greatest additive mask it may write out, None = it writes none. fused: stages it runs in the same pass where
    no gradient is needed (:data:`kernels.stages.FUSABLE`).
    """

    features: frozenset[str]
    modulation: frozenset[str] = frozenset()
    dtypes: frozenset[torch.dtype] | None = None
    widths: tuple[int, int] = (1, 1 << 20)
    devices: frozenset[str] | None = None
    gradient: bool = True
    lse: bool = True
    mask_bytes: int | None = None
    fused: frozenset[str] = frozenset()

    def refuse(self, call: Call) -> str | None:
        """The first limit that ``call`` exceeds, as a sentence; None if it fits."""
        missing = sorted(call.plan.features - self.features)
        if missing:
            return f"it cannot execute {', '.join(missing)}"
        lacking = sorted(modulation_details(call.plan) - self.modulation)
        if lacking:
            return f"it cannot execute modulation with {', '.join(lacking)}"
        if self.dtypes is not None and call.q.dtype not in self.dtypes:
            return f"it does not take {call.q.dtype}"
        width = call.q.shape[-1]
        if not self.widths[0] <= width <= self.widths[1]:
            return f"head width {width} is outside {self.widths[0]} to {self.widths[1]}"
        if self.devices is not None and call.q.device.type not in self.devices:
            return f"it does not run on {call.q.device.type}"
        if not self.gradient and call.needs_grad:
            return "it has no gradient and one is needed"
        if not self.lse and call.needs_lse:
            return "it does not give the log-sum-exp"
        if self.mask_bytes is not None and (size := mask_size(call)) > self.mask_bytes:
            return f"its mask would take {size / 2**20:.0f} MB, more than {self.mask_bytes / 2**20:.0f} MB"
        return None


Runner = Callable[[Call, Tensor, Tensor, Tensor, AttentionPlan, bool, bool], tuple[Tensor, Tensor | None]]
"""(call, q, k, v, logit parts, lse wanted, careful) -> (o, lse). careful: second try after a failure, least resources."""


@dataclass(frozen=True)
class Backend:
    """name; priority, lower is tried first by "auto"; may_fail: a failing run is retried once, then the next one is taken.

    recast: the call this backend makes of the one it is given, where it stands in for another.
    """

    name: str
    priority: int
    limits: Limits
    run: Runner
    available: Callable[[Call], str | None] = field(default=lambda call: None)
    may_fail: bool = False
    recast: Callable[[Call], Call] = field(default=lambda call: call)

    def refuse(self, call: Call) -> str | None:
        """Why this backend cannot execute ``call``; None if it can."""
        return self.limits.refuse(self.recast(call)) or self.available(call)


_registry: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Add a backend; raises ValueError if the name is taken."""
    if backend.name in _registry:
        raise ValueError(f"a backend named {backend.name!r} is registered already")
    _registry[backend.name] = backend
    return backend


def backends() -> list[Backend]:
    """All backends in the order "auto" tries them."""
    return sorted(_registry.values(), key=lambda b: b.priority)


def modulation_details(plan: AttentionPlan) -> frozenset[str]:
    """Field names of the modulation that are in use."""
    mod = plan.modulation
    if mod is None:
        return frozenset()
    return frozenset(f.name for f in fields(mod) if getattr(mod, f.name) is not None and getattr(mod, f.name) is not False)


OLD_GPU = "GPUs below compute capability 8.0 have no matrix units it can use"


def on_gpu(x: Tensor) -> bool:
    """Whether a GPU holds ``x``, of either make."""
    return x.device.type == "cuda"


def old_gpu(x: Tensor) -> bool:
    """Whether it is one that our kernels, and compiled ones, do not fit."""
    return on_gpu(x) and torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (8, 0)


def sparse_details(plan: AttentionPlan) -> tuple[bool, bool]:
    """(the blocks need the log-sum-exp, they merely stand in for dense attention)."""
    if plan.blocks is None:
        return False, False
    if isinstance(plan.blocks, BlockPlan):
        return plan.blocks.tail != "off", plan.blocks.approximate
    return plan.blocks.needs_lse, True


# --- host: the dense attention the user chose ----------------------------------------------------------------------------


def _scaled_query(call: Call, q: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """q times the per-head factor of the modulation and times ``scale``: all that is left of a rule without tables."""
    mod = plan.modulation
    if mod is None or mod.scale is None:
        return q if scale == 1.0 else q * scale
    return (q.float() * (mod.scale.float()[:, None, None] * scale)).to(q.dtype)


def _keep_live(o: Tensor, live: Tensor | None) -> Tensor:
    return o if live is None else torch.where(live, o, 0.0)


def takes_mask(dense: Callable[..., Tensor]) -> bool:
    """True where ``dense`` declares a parameter ``mask`` (or takes any keyword)."""
    try:
        parameters = inspect.signature(dense).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in parameters)


def _host_available(call: Call) -> str | None:
    if call.dense is None:
        return "the caller passed no dense attention"
    if call.plan.key_bias is not None and not takes_mask(call.dense):
        return "the dense attention of the caller takes no mask"
    return None


def _run_host(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, None]:
    assert call.dense is not None
    # The host divides by sqrt(D) itself: only what differs from that is put into q.
    q = _scaled_query(call, q, plan, call.scale * math.sqrt(q.shape[-1]) if call.scale != q.shape[-1] ** -0.5 else 1.0)
    mask, live = additive_mask(plan, q.dtype)
    o = call.dense(q, k, v) if mask is None else call.dense(q, k, v, mask=mask)
    if o.shape != q.shape:
        raise ValueError(f"the dense attention returned {list(o.shape)} for queries {list(q.shape)}; expected the same shape")
    return _keep_live(o, live), None


# --- dense: the same in place of a sparse pattern --------------------------------------------------------------------------


def _without_blocks(call: Call) -> Call:
    """The call that a pattern standing in for dense attention stands in for."""
    return replace(call, plan=call.plan.without("blocks"))


def _dense_available(call: Call) -> str | None:
    if call.plan.blocks is None:
        return "it is taken in place of sparse patterns only"
    if not sparse_details(call.plan)[1]:
        return "the mask of this plan is its meaning, and dense attention would be another result"
    if not call.explicit and not on_gpu(call.q):
        return "on a CPU the pattern is run as it is"
    return _host_available(call)


# --- triton --------------------------------------------------------------------------------------------------------------


TRITON_BLOCKS = frozenset({32, 64, 128})
"""Tokens per block; 32 is for tests."""


def _block_sizes(call: Call) -> set[int]:
    blocks = call.plan.blocks
    if blocks is None:
        return set()
    return {blocks.q.block, blocks.k.block} if isinstance(blocks, BlockPlan) else {blocks.pattern.block}


def _triton_available(call: Call) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if (sizes := _block_sizes(call)) - TRITON_BLOCKS:
        return f"it reads blocks of {', '.join(map(str, sorted(TRITON_BLOCKS)))} tokens, not of {min(sizes - TRITON_BLOCKS)}"
    if call.q.device.type == "cpu":
        from .triton.launch import interpreted

        if not interpreted():
            return "it needs a GPU"
        return None if call.explicit else "its interpreter is slow and runs only when asked for by name"
    return OLD_GPU if old_gpu(call.q) else None


def _run_triton(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, Tensor]:
    if call.needs_grad:
        from .triton.gradients import run_with_gradient as run
    else:
        from .triton.op import run

    return run(q, k, v, plan, call.scale, tokens_first=call.tokens_first, careful=careful)


# --- flex ----------------------------------------------------------------------------------------------------------------


def _flex_available(call: Call) -> str | None:
    return OLD_GPU if old_gpu(call.q) else flex.available(call)


def _run_flex(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, Tensor]:
    return flex.run(call, q, k, v, plan, careful)


# --- kitchen: the host's own sparse kernels --------------------------------------------------------------------------------


def _run_kitchen(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, None]:
    assert isinstance(plan.blocks, BlockPlan)
    return kitchen.run(call, q, k, v, plan.blocks), None


# --- sdpa and chunked ----------------------------------------------------------------------------------------------------


def _sdpa_available(call: Call) -> str | None:
    if old_gpu(call.q) and not call.explicit and call.dense is not None and sparse_details(call.plan)[1]:
        return "on GPUs below compute capability 8.0 a mask costs more than it saves"
    return None


def _run_sdpa(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, None]:
    q = _scaled_query(call, q, plan, 1.0)
    mask, live = additive_mask(plan, q.dtype)
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scale, enable_gqa=k.shape[1] != q.shape[1])
    return _keep_live(o, live), None


def _run_chunked(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, Tensor]:
    return chunked_attend(q, k, v, plan, call.scale, tokens_first=call.tokens_first)


HOST_LIMITS = Limits(features=AROUND | BESIDE | {"modulation", "key_bias"}, modulation=ONLY_SCALE, lse=False, mask_bytes=MASK_BYTES)

register(
    Backend(
        "host",
        0,
        HOST_LIMITS,
        _run_host,
        _host_available,
    )
)
register(
    Backend(
        "triton",
        10,
        Limits(
            features=EVERY_PART,
            modulation=EVERY_LOGIT_DETAIL,
            dtypes=HALF_AND_FULL,
            widths=(16, 256),
            devices=frozenset({"cuda", "cpu"}),
            fused=FUSABLE,
        ),
        _run_triton,
        _triton_available,
        may_fail=True,
    )
)
register(
    Backend(
        "kitchen",
        15,
        Limits(features=AROUND | {"blocks"}, dtypes=HALF_AND_FULL, devices=frozenset({"cuda", "cpu"}), gradient=False, lse=False),
        _run_kitchen,
        kitchen.available,
        may_fail=True,
    )
)
register(
    Backend(
        "flex",
        20,
        Limits(
            features=EVERY_PART,
            modulation=EVERY_LOGIT_DETAIL,
            dtypes=HALF_AND_FULL,
            widths=(16, 256),
            devices=frozenset({"cuda", "cpu"}),
            gradient=False,
        ),
        _run_flex,
        _flex_available,
        may_fail=True,
    )
)
register(
    Backend(
        "sdpa",
        30,
        Limits(features=AROUND | BESIDE | {"modulation", "key_bias", "labels", "blocks"}, modulation=ONLY_SCALE, lse=False, mask_bytes=MASK_BYTES),
        _run_sdpa,
        _sdpa_available,
    )
)
register(Backend("dense", 35, replace(HOST_LIMITS, features=HOST_LIMITS.features | {"blocks"}), _run_host, _dense_available, recast=_without_blocks))
register(
    Backend(
        "chunked",
        40,
        Limits(features=EVERY_PART, modulation=EVERY_LOGIT_DETAIL),
        _run_chunked,
    )
)
