"""The list of nodes this pack offers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .report import LoomReport
from .riflex import LoomRIFLEx
from .sparse import LoomSparseAttention
from .ultravico import LoomUltraViCo


class AttentionLoom(ComfyExtension):
    """Attention Loom."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """In the order of the menu."""
        return [LoomUltraViCo, LoomRIFLEx, LoomSparseAttention, LoomReport]
