"""ComfyUI custom node: masks of the things in pictures of the second toy world, read from their pixels, in place of a detector and a segmenter.

For rows of the scoreboard on methods that are told where subjects are. Attention Loom itself never loads it. It reads with `toyworld/readings.py`,
which it loads under a name of its own: the folder of the pack must not get onto the module path of the host.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGE = "toy_world_readers"


def _readings():
    """`toyworld/readings.py`."""
    if PACKAGE not in sys.modules:
        folder = Path(__file__).resolve().parent.parent
        spec = importlib.util.spec_from_file_location(PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{PACKAGE}.readings")


def segment(images, captions: list[str]):
    """Masks [n, H, W] of 0 and 1 of all things of all pictures [b, H, W, 3] in their order, empty for what is not seen. A caption per picture."""
    import torch

    if len(images) != len(captions):
        raise ValueError(f"{len(images)} pictures and {len(captions)} captions were given; write one line per picture.")
    read = _readings().read
    return torch.cat([read(image[None], caption).masks[:, 0] for image, caption in zip(images, captions)]).float()


class ToyWorldSegment:
    """V1 node: pictures and their captions in, masks out."""

    CATEGORY = "Attention Loom/toy world"
    DESCRIPTION = "Masks of the things in pictures of the second toy world, read from their pixels."
    FUNCTION = "masks"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "captions": ("STRING", {"multiline": True, "tooltip": "One caption of the second toy world per picture."})}}

    def masks(self, images, captions: str):
        return (segment(images, [line.strip() for line in captions.splitlines() if line.strip()]),)


NODE_CLASS_MAPPINGS = {"ToyWorldSegment": ToyWorldSegment}
NODE_DISPLAY_NAME_MAPPINGS = {"ToyWorldSegment": "Masks of Toy World Things"}
