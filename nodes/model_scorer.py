"""Node: Picture Scorer by Model (CLIPScore, PickScore, HPS, LAION's aesthetic head) for Find Guidance Heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from comfy_api.latest import io

from ..core.errors import LoomError
from ..core.hunt.clip import ACTIVATIONS, Aesthetic, PromptMatch, Towers
from ..core.hunt.scorers import LOOM_SCORER, Scorer
from . import common
from .headhunter import JOIN, joined

FOLDER = "clip_vision"
NONE = "none"
MEASURES = ("prompt match", "aesthetic")

Scorers = io.Custom(LOOM_SCORER)


class LoomModelScorer(io.ComfyNode):
    """Makes a :class:`core.hunt.clip.PromptMatch` or :class:`core.hunt.clip.Aesthetic`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A file, what to measure, how much it counts."""
        import folder_paths

        files = folder_paths.get_filename_list(FOLDER)
        return io.Schema(
            node_id="LoomModelScorer",
            display_name="Picture Scorer by Model",
            category=common.category("guidance"),
            description=(
                "What a picture is worth to Find Guidance Heads, judged by a CLIP file you have: how well it fits its prompt (CLIPScore, PickScore or HPS v2, by the file), "
                "or its looks by LAION's aesthetic head. Downloads nothing. (arXiv 2104.08718, 2305.01569, 2306.09341)"
            ),
            inputs=[
                io.Combo.Input("model_name", options=files, tooltip="A whole CLIP file in models/clip_vision: text and vision with both projections. clip-vit-large-patch14 for CLIPScore and aesthetic, PickScore_v1, HPS v2, CLIP-ViT-H-14; transformers' names or open_clip's."),
                io.Combo.Input("measure", options=list(MEASURES), default=MEASURES[0],
                               tooltip="prompt match: how well picture and prompt fit, about 15 to 35. aesthetic: 1 to 10, needs 'head'."),
                io.Float.Input("weight", default=1.0, min=-100.0, max=100.0, step=0.01, tooltip="How much it counts. Negative: less of it is better."),
                Scorers.Input("plus", optional=True, tooltip="Another scorer that counts as well."),
                io.Combo.Input("join", options=list(JOIN), default=JOIN[0], optional=True, tooltip="How the two count together: the sum, or the harmonic mean, which wants both high (scores above 0 only; the paper joins PickScore and CLIPScore so)."),
                *common.advanced(
                io.Combo.Input("head", options=[NONE, *files], default=NONE, optional=True, tooltip="For aesthetic: the head's file in models/clip_vision, for instance sac+logos+ava1-l14-linearMSE, which belongs to clip-vit-large-patch14."),
                io.String.Input("before", default="", optional=True, tooltip="Words before each prompt. The paper of CLIPScore writes: A photo depicts"),
                io.Combo.Input("activation", options=list(ACTIVATIONS), default=ACTIVATIONS[0], optional=True,
                               tooltip="Of the model's layers, which files do not say. auto: quick_gelu for base and large models (OpenAI's), gelu for H and larger; LAION's own base and large models need gelu."),
                ),
            ],
            outputs=[Scorers.Output(display_name="scorer", tooltip="For Find Guidance Heads, or for 'plus' of another scorer.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model_name: str, measure: str, weight: float, **more: Any) -> io.NodeOutput:
        """One scorer out."""
        return io.NodeOutput(scorer(model_name, measure, weight, **more))


def scorer(
    model_name: str, measure: str, weight: float = 1.0, plus: Any = None, join: str = JOIN[0], head: str = NONE, before: str = "", activation: str = ACTIVATIONS[0]
) -> Scorer:
    """The node's inputs as a scorer. Raises LoomError."""
    common.choice("measure", measure, list(MEASURES))
    if (measure == "aesthetic") != (head != NONE):
        raise LoomError(f"measure '{measure}' was given with head '{head}'; aesthetic needs the file of its head, prompt match takes none.")
    towers = _towers(model_name, common.choice("activation", activation, list(ACTIVATIONS)))
    own: Scorer = PromptMatch(towers, before.strip()) if measure == "prompt match" else Aesthetic.of(towers, _load(head), head)
    return joined(own, weight, plus, join)


_KNOWN: WeakValueDictionary[tuple[str, int, str], Towers] = WeakValueDictionary()
"""Two scorers of one file share its model, as long as one of them lives."""


def _towers(name: str, activation: str) -> Towers:
    path = _path(name)
    key = (path, Path(path).stat().st_mtime_ns, activation)
    towers = _KNOWN.get(key)
    if towers is None:
        towers = _KNOWN[key] = Towers(_load(name), name, activation)
    return towers


def _load(name: str) -> Any:
    import comfy.utils

    return comfy.utils.load_torch_file(_path(name), safe_load=True)


def _path(name: str) -> str:
    import folder_paths

    return str(folder_paths.get_full_path_or_raise(FOLDER, name))
