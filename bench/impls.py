"""What is measured, ours and dense: each implementation is a name, whether it is there, and how to make the call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..kernels.attend import Trace, attend
from ..kernels.blocks import Tail
from ..kernels.plan import AttentionPlan
from ..kernels.triton.candidates import SPECIALISED
from ..kernels.triton.launch import architecture
from ..kernels.triton.settings import Settings
from ..kernels.triton.specialised_launch import runs_on
from ..kernels.triton.tuning import trial
from .masks import Mask, everything
from .shapes import Shape


class Unfit(Exception):
    """The implementation cannot run this case; the message says why."""


@dataclass(frozen=True, eq=False)
class Case:
    """One thing to compute: attention of q, k, v as ``mask`` says, or dense. density: what share of the pairs is computed."""

    shape: Shape
    pattern: str
    density: float
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask | None = None

    @property
    def scale(self) -> float:
        """Factor on the logits."""
        return self.shape.width**-0.5


Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Impl:
    """name: as in the table. missing: why it cannot be used in this process, None if it can. prepare: makes the call for a
    case, or raises :class:`Unfit`; what it does is not timed. backward: the call can be differentiated. own_density: share
    of pairs it computes where that is not the case's."""

    name: str
    prepare: Callable[[Case], Call]
    missing: Callable[[], str | None] = field(default=lambda: None)
    backward: bool = False
    own_density: Callable[[Case], float] | None = None
    ours: bool = False
    same_mask: bool = True


# --- dense ----------------------------------------------------------------------------------------------------------------


def _sdpa(*backends: SDPBackend) -> Callable[[Case], Call]:
    def prepare(case: Case) -> Call:
        def call() -> Tensor:
            with sdpa_kernel(list(backends)):
                return torch.nn.functional.scaled_dot_product_attention(case.q, case.k, case.v)

        return call

    return prepare


def _needs_gpu() -> str | None:
    return None if torch.cuda.is_available() else "it needs a CUDA GPU"


def _flash_attn(module: str) -> tuple[Callable[[], str | None], Callable[[Case], Call]]:
    def function() -> Callable[..., Tensor]:
        import importlib

        return importlib.import_module(module).flash_attn_func

    def prepare(case: Case) -> Call:
        attention = function()
        q, k, v = (x.transpose(1, 2) for x in (case.q, case.k, case.v))

        def call() -> Tensor:
            out = attention(q, k, v)
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return call

    return importable(function), prepare


def importable(function: Callable[[], object]) -> Callable[[], str | None]:
    """Why what ``function`` imports is not there, as a sentence; None if it is and there is a GPU for it."""

    def missing() -> str | None:
        try:
            function()
        except Exception as error:  # a package built for another torch fails in its own way
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"not importable: {text}"
        return _needs_gpu()

    return missing


def dense_impls() -> list[Impl]:
    """Dense attention, to find the best of the run."""
    two, three = _flash_attn("flash_attn"), _flash_attn("flash_attn_interface")
    return [
        Impl("sdpa cudnn", _sdpa(SDPBackend.CUDNN_ATTENTION), _needs_gpu, backward=True),
        Impl("sdpa flash", _sdpa(SDPBackend.FLASH_ATTENTION), _needs_gpu, backward=True),
        Impl("sdpa efficient", _sdpa(SDPBackend.EFFICIENT_ATTENTION), _needs_gpu, backward=True),
        Impl("sdpa math", _sdpa(SDPBackend.MATH), lambda: None if not torch.cuda.is_available() else "it writes out N x N: only on a CPU"),
        Impl("flash-attn 2", two[1], two[0], backward=True),
        Impl("flash-attn 3", three[1], three[0], backward=True),
    ]


# --- ours -----------------------------------------------------------------------------------------------------------------


def _ours(*, rebuild: bool = False, tail: Tail = "off", quant: str = "none", backend: str = "triton", settings: Settings | None = None) -> Callable[[Case], Call]:
    def prepare(case: Case) -> Call:
        mask = case.mask
        plan = everything(case.shape, str(case.q.device)) if mask is None else mask.plan
        plan = plan if tail == "off" else replace(plan, tail=tail)
        if quant != "none" and case.shape.width not in (64, 128):
            raise Unfit(f"{quant} takes head width 64 or 128, this is {case.shape.width}")

        def call() -> Tensor:
            blocks = mask.rebuilt() if rebuild and mask is not None else plan
            with nullcontext() if settings is None else trial(settings):
                out = attend(case.q, case.k, case.v, AttentionPlan(blocks=blocks), backend=backend, quant=quant, trace=Trace())  # type: ignore[arg-type]
            assert isinstance(out, Tensor)
            return out

        return call

    return prepare


def our_impls() -> list[Impl]:
    """The first includes building the lists from a ready block map, as the speed targets are stated; the others reuse a plan."""
    return [
        Impl("loom", _ours(rebuild=True), backward=True, ours=True),
        Impl("loom, plan reused", _ours(), ours=True),
        Impl("loom, tail row", _ours(tail="row"), ours=True, same_mask=False),
        Impl("loom, tail centroid", _ours(tail="centroid"), ours=True, same_mask=False),
        Impl("loom, int8_qk", _ours(quant="int8_qk"), ours=True),
        Impl("loom, int8_qk_fp8_pv", _ours(quant="int8_qk_fp8_pv"), ours=True),
        Impl("loom, specialised", _ours(rebuild=True, settings=SPECIALISED), _no_roles, ours=True),
    ]


def our_dense() -> list[Impl]:
    """All blocks through our kernels: what the sparse machinery costs by itself."""
    return [Impl("loom", _ours(), backward=True, ours=True), Impl("loom, specialised", _ours(settings=SPECIALISED), _no_roles, ours=True)]


def _no_roles() -> str | None:
    if not torch.cuda.is_available():
        return _needs_gpu()
    return None if runs_on(architecture(torch.device("cuda"))) else "the kernel with roles is for Hopper, and for a Triton with its dialect"
