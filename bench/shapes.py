"""The attention calls of real models (``specs``: sparse backend §18), and tiny ones that exercise the same code."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.patterns.base import Tokens


@dataclass(frozen=True)
class Shape:
    """One self-attention call of batch 1. grid (T, Y, X); text tokens stand before or behind it. block: tokens per block."""

    name: str
    title: str
    heads: int
    width: int
    grid: tuple[int, int, int]
    text: int = 0
    text_first: bool = False
    block: int = 128

    @property
    def tokens(self) -> Tokens:
        """The tokens as patterns see them."""
        t, y, x = self.grid
        return Tokens(t * y * x + self.text, self.grid, self.text if self.text_first else 0)

    @property
    def count(self) -> int:
        """N."""
        return self.tokens.count

    @property
    def dense_flops(self) -> float:
        """Floating-point operations of the two products, all pairs."""
        return 4.0 * self.count**2 * self.heads * self.width


SHAPES = (
    Shape("hunyuan-720p", "HunyuanVideo 720p, 129 frames", 24, 128, (33, 45, 80), 256),
    Shape("wan14b-720p", "Wan 14B 720p, 81 frames", 40, 128, (21, 45, 80)),
    Shape("wan14b-480p", "Wan 14B 480p, 81 frames", 40, 128, (21, 30, 52)),
    Shape("wan1.3b-480p", "Wan 1.3B 480p, 81 frames", 12, 128, (21, 30, 52)),
    Shape("flux-4096", "FLUX 4096 x 4096", 24, 128, (1, 256, 256), 512, True),
    Shape("hunyuan-768p", "HunyuanVideo 768p, 117 frames", 24, 128, (30, 48, 80), 256),
    Shape("cogvideox-5b", "CogVideoX 5B, 49 frames", 48, 64, (13, 30, 45), 226, True),
    Shape("cogvideox-2b", "CogVideoX 2B, 49 frames", 30, 64, (13, 30, 45), 226, True),
    Shape("flux-2048", "FLUX 2048 x 2048", 24, 128, (1, 128, 128), 512, True),
    Shape("flux-1024", "FLUX 1024 x 1024", 24, 128, (1, 64, 64), 512, True),
    Shape("sdxl-2048", "SDXL 2048, first level", 10, 64, (1, 128, 128)),
    Shape("sdxl-1024", "SDXL 1024, first level", 10, 64, (1, 64, 64)),
    Shape("sdxl-1024-b", "SDXL 1024, second level", 20, 64, (1, 32, 32)),
    Shape("sd15-1024", "SD 1.5 1024, first level", 8, 40, (1, 128, 128)),
    Shape("sd15-512", "SD 1.5 512, first level", 8, 40, (1, 64, 64)),
)
"""Those that matter most come first: a run with a time budget gets through them."""

QUICK = ("wan1.3b-480p", "flux-2048", "hunyuan-720p")

TINY = (
    Shape("tiny-video", "three frames and some text", 2, 64, (3, 6, 8), 10, block=32),
    Shape("tiny-image", "one image", 1, 64, (1, 12, 12), block=32),
)
