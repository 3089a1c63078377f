"""Attention Loom: research methods that change attention in image and video diffusion models, as ComfyUI nodes.

Nothing is imported here but the standard library: the host loads the pack in milliseconds, and the same folder can be
imported without the host by tests and tools.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI once its own modules are ready; returns the extension with all nodes."""
    from .nodes.extension import AttentionLoom

    return AttentionLoom()
