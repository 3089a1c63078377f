"""What has to be true of the kernels on a GPU, as numbers against limits: for machines without a test runner.

The limits are those of ``specs``: sparse backend §11, for N(0,1) inputs and at least 2048 tokens; determinism is §12, memory
§14. Everything is held against the oracle in fp64 on the same rounded inputs with the same pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.attend import attend
from ..kernels.blocks import BlockPlan
from ..kernels.builders import from_bool
from ..kernels.order import by_frame, raster
from ..kernels.plan import AttentionPlan
from ..kernels.quant import has_e4m3
from ..kernels.reference import reference_attend
from ..kernels.triton.launch import architecture


@dataclass(frozen=True)
class Finding:
    """One checked number. ok: value <= limit (a NaN is not)."""

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the limit is kept."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Allowed:
    """Relative L2 and greatest error over rms of the output, error of the log-sum-exp, relative L2 of gradients."""

    output: float
    worst: float
    lse: float
    gradient: float


ALLOWED = {
    torch.bfloat16: Allowed(4e-3, 2.5e-2, 1e-3, 1.2e-2),
    torch.float16: Allowed(8e-4, 5e-3, 1e-3, 3e-3),
    torch.float32: Allowed(2e-6, 2e-5, 1e-5, 1e-5),
}
EIGHT_BIT = {"int8_qk": Allowed(2e-2, math.inf, 2e-2, math.inf), "int8_qk_fp8_pv": Allowed(4e-2, math.inf, 2e-2, math.inf)}
COSINE = {"int8_qk": 3e-4, "int8_qk_fp8_pv": 1e-3}
"""Most that the cosine to the exact output may miss to 1."""
TIMES_SDPA = 2.0
"""Most error over that of torch's own attention on the same inputs."""


@dataclass(frozen=True)
class Size:
    """Size of the checked calls. The tiny one is for the interpreter."""

    tokens: int = 2048
    heads: int = 4
    block: int = 128
    widths: tuple[int, ...] = (64, 128)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)


FULL = Size()
TINY = Size(96, 2, 32, (64,), (torch.float16,))


def all_checks(size: Size, device: str) -> Iterator[tuple[str, Callable[[], Iterator[Finding]]]]:
    """(name, check) of everything, quickest to tell first."""
    for dtype in size.dtypes:
        for width in size.widths:
            kind = f"{str(dtype).removeprefix('torch.')} d{width}"
            yield f"numerics {kind}", lambda dtype=dtype, width=width: numerics(size, device, dtype, width)  # type: ignore[misc]
    for quant in EIGHT_BIT:
        if quant == "int8_qk_fp8_pv" and not has_e4m3(architecture(torch.device(device))):
            continue
        for dtype in size.dtypes:
            if dtype != torch.float32:
                yield f"{quant} {str(dtype).removeprefix('torch.')}", lambda dtype=dtype, quant=quant: eight_bit(size, device, dtype, quant)  # type: ignore[misc]
    yield "batch layouts", lambda: layouts(size, device)
    yield "no NaN from what is not read", lambda: fuzz(size, device)
    yield "values", lambda: values(size, device)
    if device == "cuda":
        yield "memory", lambda: memory(size, device)


def tensors(size: Size, device: str, dtype: torch.dtype, width: int, batch: int = 1, seed: int = 0) -> list[Tensor]:
    """q, k, v with N(0,1) entries, rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, size.heads, size.tokens, width, generator=generator).to(dtype).to(device) for _ in range(3)]


def plans(size: Size, device: str) -> dict[str, BlockPlan | None]:
    """Dense without lists, dense through lists, half of the blocks at random per head, and ragged frames with free tokens."""
    order = raster(size.tokens, size.block, device)
    generator = torch.Generator().manual_seed(1)
    half = torch.rand(size.heads, order.blocks, order.blocks, generator=generator) < 0.5
    rows = size.tokens // 8
    frames = by_frame(size.tokens, size.block, (4, 1, rows), size.tokens // 16, device)
    sparse = torch.rand(1, frames.blocks, frames.blocks, generator=generator) < 0.4
    return {
        "dense": None,
        "all blocks": from_bool(torch.ones(order.blocks, order.blocks, dtype=torch.bool, device=device), order, order),
        "half": from_bool(half.to(device), order, order),
        "frames": from_bool(sparse.to(device), frames, frames),
    }


def ours(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan | None, quant: str = "none") -> tuple[Tensor, Tensor]:
    """(o, lse) of the Triton path."""
    return attend(q, k, v, AttentionPlan(blocks=plan), backend="triton", return_lse=True, quant=quant)  # type: ignore[arg-type, return-value]


def numerics(size: Size, device: str, dtype: torch.dtype, width: int) -> Iterator[Finding]:
    """Output, log-sum-exp and gradients of every plan against the oracle, and the output against torch's own error."""
    allowed = ALLOWED[dtype]
    for name, plan in plans(size, device).items():
        q, k, v = (x.requires_grad_() for x in tensors(size, device, dtype, width))
        o, lse = ours(q, k, v, plan)
        eq, ek, ev = exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
        want, want_lse = reference_attend(eq, ek, ev, AttentionPlan(blocks=plan), return_lse=True)
        yield Finding(f"{name}: output", _relative(o, want), allowed.output)
        yield Finding(f"{name}: worst output over rms", _worst(o, want), allowed.worst)
        yield Finding(f"{name}: log-sum-exp", float((lse - want_lse).detach().abs().max()), allowed.lse)
        upstream = torch.randn(o.shape, generator=torch.Generator().manual_seed(2)).to(dtype).to(device)
        got = torch.autograd.grad(o, (q, k, v), upstream)
        truth = torch.autograd.grad(want, exact, upstream.double())
        for letter, a, b in zip("qkv", got, truth, strict=True):
            yield Finding(f"{name}: gradient of {letter}", _relative(a, b), allowed.gradient)
        if plan is None:
            with torch.no_grad():
                stock = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            yield Finding(f"{name}: error over torch's own", _relative(o, want) / max(_relative(stock, want), 1e-12), TIMES_SDPA)


def eight_bit(size: Size, device: str, dtype: torch.dtype, quant: str) -> Iterator[Finding]:
    """An opt-in eight-bit path, on plain and on peaked logits."""
    allowed = EIGHT_BIT[quant]
    for width in (w for w in size.widths if w in (64, 128)):
        for name, plan in plans(size, device).items():
            q, k, v = tensors(size, device, dtype, width)
            o, lse = ours(q, k, v, plan, quant)
            want, want_lse = reference_attend(q, k, v, AttentionPlan(blocks=plan), return_lse=True)
            yield Finding(f"d{width} {name}: output", _relative(o, want), allowed.output)
            yield Finding(f"d{width} {name}: 1 - cosine", 1 - float(torch.cosine_similarity(o.double().flatten(), want.flatten(), 0)), COSINE[quant])
            yield Finding(f"d{width} {name}: log-sum-exp", float((lse.double() - want_lse).abs().max()), allowed.lse)
        if quant == "int8_qk":
            o, _ = ours(q * 3, k * 3, v, None, quant)
            yield Finding(f"d{width} peaked: output", _relative(o, reference_attend(q * 3, k * 3, v, AttentionPlan())), 6e-2)  # type: ignore[arg-type]


def layouts(size: Size, device: str) -> Iterator[Finding]:
    """Bits that differ between two runs, and between an element in a batch, in another memory layout, and alone. None may."""
    dtype, width = size.dtypes[0], size.widths[-1]
    plan = plans(size, device)["half"]
    assert plan is not None
    q, k, v = tensors(size, device, dtype, width, batch=2)
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(2)).to(dtype).to(device)

    def run(plan: BlockPlan, *xs: Tensor) -> list[Tensor]:
        lq, lk, lv = leaves = [x.detach().requires_grad_() for x in xs[:3]]
        o, lse = ours(lq, lk, lv, plan)
        return [o.detach(), lse.detach(), *torch.autograd.grad(o, leaves, xs[3])]

    whole = run(plan, q, k, v, upstream)
    yield Finding("second run", _differing(whole, run(plan, q, k, v, upstream)), 0)
    rows_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, upstream)]
    yield Finding("tokens first in memory", _differing(first := run(plan, *rows_first), whole), 0)
    yield Finding("tokens first in memory, second run", _differing(first, run(plan, *rows_first)), 0)
    alone = [run(plan, *(x[b : b + 1] for x in (q, k, v, upstream))) for b in range(2)]
    yield Finding("one batch element at a time", _differing(whole, [torch.cat(parts) for parts in zip(*alone, strict=True)]), 0)
    again = [run(plan, *(x[b : b + 1] for x in (q, k, v, upstream))) for b in range(2)]
    yield Finding("one batch element at a time, second run", sum(_differing(a, b) for a, b in zip(alone, again, strict=True)), 0)
    heads = [run(plan.head_range(h, h + 1), *(x[:, h : h + 1] for x in (q, k, v, upstream))) for h in range(size.heads)]
    yield Finding("one head at a time", _differing(whole, [torch.cat(parts, 1) for parts in zip(*heads, strict=True)]), 0)


def fuzz(size: Size, device: str) -> Iterator[Finding]:
    """Inf and NaN in keys nobody reads change nothing; a row without keys gives zero and minus infinity."""
    dtype, width = size.dtypes[0], size.widths[0]
    order = raster(size.tokens, size.block, device)
    mask = torch.ones(order.blocks, order.blocks, dtype=torch.bool, device=device)
    mask[:, 1] = False
    plan = from_bool(mask, order, order)
    q, k, v = tensors(size, device, dtype, width)
    clean = ours(q, k, v, plan)
    for bad in (math.inf, -math.inf, math.nan):
        spoilt_k, spoilt_v = k.clone(), v.clone()
        spoilt_k[:, :, size.block : 2 * size.block : 3] = bad
        spoilt_v[:, :, size.block : 2 * size.block : 5] = bad
        yield Finding(f"{bad} in unread keys", _differing(clean, ours(q, spoilt_k, spoilt_v, plan)), 0)
    generator = torch.Generator().manual_seed(4)
    hit = (torch.rand(k.shape, generator=generator) < 0.01).to(device)  # one entry in a hundred, of the block nobody reads
    hit[:, :, : size.block] = hit[:, :, 2 * size.block :] = False
    yield Finding("inf in 1 % of unread entries", _differing(clean, ours(q, k.masked_fill(hit, math.inf), v.masked_fill(hit, -math.inf), plan)), 0)
    empty = replace(plan, full=replace(plan.full, ptr=torch.zeros_like(plan.full.ptr)))
    o, lse = ours(q, k, v, empty)
    yield Finding("rows without keys", float((o != 0).sum() + (lse != -math.inf).sum()), 0)


def values(size: Size, device: str) -> Iterator[Finding]:
    """A constant V comes back as that constant; a large one does not overflow."""
    for dtype in size.dtypes:
        q, k, v = tensors(size, device, dtype, size.widths[0])
        kind = str(dtype).removeprefix("torch.")
        plan = plans(size, device)["half"]
        o, _ = ours(q, k, torch.full_like(v, 0.7), plan)
        constant = torch.full_like(v, 0.7)
        yield Finding(f"{kind}: constant V, units in the last place", float(((o - constant).abs() / (constant * torch.finfo(dtype).eps)).max()), 1)
        o, _ = ours(q, k, (v * 1e4).clamp(-6e4, 6e4), plan)
        yield Finding(f"{kind}: large V, values that are not finite", float((~o.isfinite()).sum()), 0)


def memory(size: Size, device: str) -> Iterator[Finding]:
    """Peak of a call over what it may hold: output, log-sum-exp, reordered K and V, lists; a tenth more for the allocator."""
    tokens, width = 32760, 128
    big = replace(size, tokens=tokens, heads=12)
    q, k, v = tensors(big, device, torch.bfloat16, width)
    order = by_frame(tokens, 128, (21, 30, 52), 0, device)
    plan = from_bool(torch.rand(order.blocks, order.blocks, device=device) < 0.1, order, order)
    ours(q, k, v, plan)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ours(q, k, v, plan)
    torch.cuda.synchronize()
    held = torch.cuda.max_memory_allocated() - before
    one = big.heads * width * 2
    allowed = one * tokens + 4 * big.heads * tokens + 2 * one * order.padded + 64 * order.blocks**2
    yield Finding("peak over what a call may hold", held / (1.1 * allowed), 1)


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm().clamp_min(1e-300))


def _worst(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach()).abs().max() / want.detach().square().mean().sqrt())


def _differing(a: list[Tensor] | tuple[Tensor, ...], b: list[Tensor] | tuple[Tensor, ...]) -> float:
    """How many entries are not the same; a NaN never is."""
    return float(sum(int((x != y).sum()) for x, y in zip(a, b, strict=True)))
