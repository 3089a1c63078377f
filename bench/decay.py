"""UltraViCo's decay on long clips: our kernel with and without it, FlexAttention's score modification, and plain torch in chunks.

One attention call of Wan and HunyuanVideo at three and four times their trained length. The decay is the frame table the node makes
(:mod:`core.methods.ultravico`), read with centred keys as by default. The chunked path is timed on one head: it is the way of
machines without a GPU, and all heads of a clip this long would take it minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.methods.ultravico import UltraViCo, class_table
from ..kernels import flex
from ..kernels.attend import attend
from ..kernels.plan import AttentionPlan, FrameTable, Modulation
from ..kernels.triton.candidates import SPECIALISED, SPECIALISED_FOR_PAIRS
from ..kernels.triton.settings import Settings
from ..kernels.triton.tuning import trial
from . import inputs
from .measure import SHORT, Protocol, milliseconds, peak_megabytes, relative_l2
from .results import Results
from .shapes import Shape

TABLE = "decay"
CHUNKED_TOKENS = 120_000
"""Above this many tokens not even one head goes through the chunked path."""


@dataclass(frozen=True)
class Clip:
    """One call: its shape, the trained length in latent frames, and the tokens that are not frames (behind them)."""

    shape: Shape
    trained: int


CLIPS = (
    Clip(Shape("wan1.3b-480p-3x", "Wan 1.3B 480p, 241 frames", 12, 128, (61, 30, 52)), 21),
    Clip(Shape("wan14b-480p-3x", "Wan 14B 480p, 241 frames", 40, 128, (61, 30, 52)), 21),
    Clip(Shape("wan1.3b-480p-4x", "Wan 1.3B 480p, 321 frames", 12, 128, (81, 30, 52)), 21),
    Clip(Shape("hunyuan-720p-3x", "HunyuanVideo 720p, 385 frames", 24, 128, (97, 45, 80), 256), 33),
    Clip(Shape("hunyuan-720p-4x", "HunyuanVideo 720p, 513 frames", 24, 128, (129, 45, 80), 256), 33),
)
TINY = (Clip(Shape("tiny-clip", "nine frames and some text", 2, 64, (9, 4, 6), 5, block=32), 3),)


def modulation(clip: Clip, device: str) -> Modulation:
    """The decay as the node asks for it: alpha 0.9, centred keys, positive logits only."""
    t, y, x = clip.shape.grid
    frames = torch.arange(t, dtype=torch.int16, device=device).repeat_interleave(y * x)
    ids = torch.cat([frames, torch.full((clip.shape.text,), -1, dtype=torch.int16, device=device)])
    classes, factors = class_table(UltraViCo(train_frames=clip.trained), t, device)
    return Modulation(frames=FrameTable(ids, ids, classes, factors), positive_only=True, center_keys=True)


def measure(results: Results, clips: tuple[Clip, ...], device: str, dtype: torch.dtype, until: float, protocol: Protocol | None = SHORT, *, roles: bool = False) -> None:
    """A row for each clip and each way to compute it; what is there already is left. protocol None: no times (a rehearsal).

    roles: the kernel with roles for its warp groups as well.
    """
    for clip in clips:
        wanted = [w for w in (*WAYS, *(ROLES if roles else ())) if f"{clip.shape.name}: {w}" not in results.names(TABLE)]
        if not wanted or time.monotonic() > until:
            continue
        torch.cuda.empty_cache() if device == "cuda" else None
        q, k, v = inputs.random(clip.shape, dtype, device)
        plan = AttentionPlan(modulation=modulation(clip, device))
        truth: Tensor | None = None
        for way, call, heads in _ways(clip, q, k, v, plan):
            name = f"{clip.shape.name}: {way}"
            if way not in wanted or time.monotonic() > until:
                continue
            row = {"name": name, "shape": clip.shape.name, "way": way, "tokens": clip.shape.count, "heads": heads, "decay": way in DECAYED}
            try:
                out = call()
                if way == "loom":
                    truth = out[:, :1]
                same = truth is not None and way in DECAYED
                row["rel_l2_to_loom"] = relative_l2(out[:, :1], truth.float()) if same and truth is not None else None
                del out
                if protocol is not None:
                    row["peak_mb"] = peak_megabytes(call)
                    timing = milliseconds(call, protocol)
                    row |= {"ms": timing.median, "p90_ms": timing.p90, "calls": timing.calls}
            except Exception as error:  # its reason is the result, and the next way still has something to say
                text = (str(error).strip().splitlines() or [""])[0]
                row["failed"] = f"{type(error).__name__}: {text}"
                if device == "cuda":
                    torch.cuda.empty_cache()
            results.put(TABLE, **row)
            took = f"{row['ms']:.2f} ms" if "ms" in row else row.get("failed", "ran")
            print(f"{name}: {took}", flush=True)


WAYS = ("loom", "loom, no decay", "flex, score_mod", "flex, no decay", "chunked, one head")
ROLES = ("specialised", "specialised, no decay")
DECAYED = ("loom", "flex, score_mod", "chunked, one head", "specialised")


def _ways(clip: Clip, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Iterator[tuple[str, Callable[[], Tensor], int]]:
    """(name, call, heads it computes)."""
    heads = q.shape[1]

    def ours(plan: AttentionPlan, backend: str, n: int = heads) -> Callable[[], Tensor]:
        return lambda: attend(q[:, :n], k[:, :n], v[:, :n], plan, backend=backend)  # type: ignore[return-value]

    yield "loom", ours(plan, "triton"), heads
    yield "loom, no decay", ours(AttentionPlan(), "triton"), heads
    yield "specialised", _under(SPECIALISED_FOR_PAIRS, ours(plan, "triton")), heads
    yield "specialised, no decay", _under(SPECIALISED, ours(AttentionPlan(), "triton")), heads
    yield "flex, score_mod", _flex(q, k, v, plan), heads
    yield "flex, no decay", _flex(q, k, v, AttentionPlan()), heads
    if clip.shape.count <= CHUNKED_TOKENS:
        yield "chunked, one head", ours(plan, "chunked", 1), 1


def _under(settings: Settings, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def under() -> Tensor:
        with trial(settings):
            return call()

    return under


def _flex(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Callable[[], Tensor]:
    """FlexAttention as a user would compile it, with its own tiles. The centre of the keys is made in the call, as ours is."""
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, dynamic=False) if q.device.type == "cuda" else flex_attention

    def call() -> Tensor:
        out = attention(q, k, v, score_mod=flex.score_mod(plan, q, k, q.shape[-1] ** -0.5))
        assert isinstance(out, Tensor)
        return out

    return call
