"""The list of nodes this pack offers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..kernels.triton.tuning import use_directory
from .astar import LoomAStar
from .attencraft import LoomAttenCraftMasks, LoomAttenCraftTrain
from .diffuhaul import LoomDiffUHaul
from .ditraj import LoomDiTraj, LoomSplitPrompt
from .entropy_scale import LoomEntropyScale
from .gradsam import LoomGradSAM, LoomSubjectMask
from .headhunter import LoomHeadHunter, LoomLoadHeads, LoomPictureScorer
from .inspector import LoomInspector, LoomInspectorPictures
from .ir_diffusion import LoomIRDiffusion, LoomPlaceMasks, LoomReferencePictures, LoomSubjectBatch
from .model_scorer import LoomModelScorer
from .ouroboros import LoomDecodeEndless, LoomEndlessPrompts, LoomEndlessSubject, LoomOuroboros
from .report import LoomReport
from .riflex import LoomRIFLEx
from .softpag import LoomSoftPAG
from .spacetime import LoomSpaceTime
from .sparse import LoomSparseAttention
from .track_editor import LoomTrackEditor
from .ultravico import LoomUltraViCo


def _keep_tuning_with_the_user() -> None:
    """Launch settings measured on this machine live in the host's user directory, beside its other settings."""
    from pathlib import Path

    import folder_paths

    use_directory(Path(folder_paths.get_user_directory()) / "attention_loom")


class AttentionLoom(ComfyExtension):
    """Attention Loom."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """In the order of the menu."""
        _keep_tuning_with_the_user()
        return [
            LoomUltraViCo,
            LoomRIFLEx,
            LoomOuroboros,
            LoomEndlessPrompts,
            LoomEndlessSubject,
            LoomDecodeEndless,
            LoomSparseAttention,
            LoomEntropyScale,
            LoomSpaceTime,
            LoomSoftPAG,
            LoomHeadHunter,
            LoomPictureScorer,
            LoomModelScorer,
            LoomLoadHeads,
            LoomAStar,
            LoomGradSAM,
            LoomSubjectMask,
            LoomIRDiffusion,
            LoomSubjectBatch,
            LoomReferencePictures,
            LoomPlaceMasks,
            LoomDiffUHaul,
            LoomAttenCraftMasks,
            LoomAttenCraftTrain,
            LoomDiTraj,
            LoomSplitPrompt,
            LoomTrackEditor,
            LoomInspector,
            LoomInspectorPictures,
            LoomReport,
        ]
