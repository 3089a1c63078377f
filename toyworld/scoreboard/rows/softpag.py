"""SoftPAG (arXiv 2506.10978): guidance away from a prediction whose attention heads are weakened, beside CFG and instead of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graphs import SAMPLER, Graph, Shot, base, through, wired
from ..row import Arm, Judge, Row

CODE = ("core/methods/softpag.py", "core/methods/extra.py", "core/guidance.py", "core/extra_pass.py", "core/heads.py", "nodes/softpag.py")
JUDGES = (
    Judge("iou", "shape IoU"),
    Judge("binding", "binding"),
    Judge("right", "all right"),
    Judge("sharpness", "sharpness"),
    Judge("texture", "texture"),
)
MODELS = {"sd3": "scenes_sd3", "sd15": "scenes_sd15"}
SCALE = 3.0
MIDDLE = "1"
"""Of the SD3 model's three blocks."""
Chain = tuple[tuple[str, dict[str, Any]], ...]


def heads(**settings: Any) -> tuple[str, dict[str, Any]]:
    """The Head Guidance node as it comes, but for the settings given."""
    return "LoomSoftPAG", {"preset": "auto", "scale": SCALE, "u": 0.5, **settings}


OURS: dict[str, Chain] = {"sd3": (heads(heads=MIDDLE),), "sd15": (heads(),)}
PAG_UNET: Chain = (("PerturbedAttentionGuidance", {"scale": SCALE}),)
SLG: Chain = (("SkipLayerGuidanceSD3", {"layers": MIDDLE, "scale": SCALE, "start_percent": 0.01, "end_percent": 0.15}),)
# The host has no perturbed-attention guidance for joint attention: its two forms are drawn by our node.
PAG_JOINT: Chain = (heads(heads=MIDDLE, u=1.0),)
PAG_OTHER_JOINT: Chain = (heads(heads=MIDDLE, u=1.0, rows="image_image"),)
RIVALS = {
    "sd3": (("PAG, middle block", PAG_JOINT), ("PAG, middle block, picture to picture", PAG_OTHER_JOINT), ("skip-layer guidance", SLG), ("SoftPAG, preset auto", (heads(),))),
    "sd15": (("PAG", PAG_UNET),),
}
WHERE = {
    "sd3": "PAG takes the middle block at u 1, as the paper has it and as diffusers has it: picture tokens see themselves and the text. SoftPAG is the first of them at u 0.5, the "
    "node's own value, so that one thing differs. Preset auto is meant for deep models: here it is two of three blocks. Skip-layer guidance: the host's node with its own window, 14 % of the "
    "sampling, so it is cheaper.",
    "sd15": "PAG is the host's node: the middle block at u 1. SoftPAG is the same block (preset auto) at u 0.5, the node's own value, so that one thing differs.",
}


def drawn(chain: Chain, cfg: float | None = None, steps: float = 1.0) -> Callable[[Shot], Graph]:
    """Graph builder with these nodes, another CFG scale, and so many times the steps."""

    def graph(shot: Shot) -> Graph:
        nodes = wired(base(shot), *chain)
        inputs = nodes[SAMPLER]["inputs"]
        inputs["steps"] = round(shot.steps * steps)
        inputs["cfg"] = inputs["cfg"] if cfg is None else cfg
        return nodes

    return graph


def code(chain: Chain) -> tuple[str, ...]:
    """What the arm depends on."""
    return CODE if any(kind == "LoomSoftPAG" for kind, _ in chain) else ()


def beside_cfg(model: str) -> Row:
    """Two evaluations per step without it, three with it."""
    return Row(
        name=f"softpag-{model}-cfg",
        method="softpag",
        claim="Added to CFG, weakened heads at half strength give better shapes and binding than CFG alone, and smooth less than PAG at the same cost.",
        latent_frames=1,
        stock=Arm("CFG 3", through()),
        alternatives=(
            *(Arm(name, drawn(chain), code(chain)) for name, chain in RIVALS[model]),
            Arm("CFG 3, 1.5x the steps", drawn((), steps=1.5)),
            Arm("CFG 4.5", drawn((), cfg=4.5)),
        ),
        ours=Arm("SoftPAG", drawn(OURS[model]), CODE),
        judges=JUDGES,
        notes=f"Scale 3 everywhere, the paper's and the host's own. {WHERE[model]} 1.5x the steps is as many evaluations as SoftPAG's; CFG 4.5 costs nothing.",
        world=MODELS[model],
    )


def instead_of_cfg(model: str) -> Row:
    """One evaluation per step without it, two with it, as many as CFG."""
    return Row(
        name=f"softpag-{model}-alone",
        method="softpag",
        claim="Without CFG, weakened heads at half strength give better shapes and binding than no guidance and than PAG, and come near CFG at the same cost.",
        latent_frames=1,
        stock=Arm("no guidance", drawn((), cfg=1.0)),
        alternatives=(
            *(Arm(name, drawn(chain, cfg=1.0), code(chain)) for name, chain in RIVALS[model]),
            Arm("twice the steps", drawn((), cfg=1.0, steps=2.0)),
            Arm("CFG 3", through()),
        ),
        ours=Arm("SoftPAG", drawn(OURS[model], cfg=1.0), CODE),
        judges=JUDGES,
        notes=f"CFG 1 everywhere but in the arm CFG 3; scale 3, the paper's and the host's own. {WHERE[model]} All but no guidance and skip-layer guidance make as many evaluations.",
        world=MODELS[model],
    )


ROWS = tuple(make(model) for model in MODELS for make in (beside_cfg, instead_of_cfg))
