"""The toy world's truth as a scorer: how well a picture shows what its caption says, by measurement.

An example of a scorer of one's own for Find Guidance Heads: a function of (images, prompt) with a name. It goes into the socket LOOM_SCORER,
or into `core.hunt.scorers.as_scorer` in a script.
"""

from __future__ import annotations

import math

import torch

from .scores import score


class TruthScorer:
    """One column of `scores.COLUMNS`, averaged over the images. Pictures of the second world only."""

    def __init__(self, measure: str = "iou") -> None:
        self.measure = measure
        self.name = f"toy world's truth, {measure}"
        self.key = measure

    def __call__(self, images: torch.Tensor, prompt: str) -> float:
        """images [N, S, S, 3] in 0..1, each a picture of its own; 0 where the measure does not apply because nothing is seen.

        Example: ``TruthScorer("presence")(render(scene), str(scene.caption)) == 1.0``. ValueError: the prompt is no caption.
        """
        values = [score(image[None], prompt)[self.measure] for image in images]
        return sum(0.0 if math.isnan(value) else value for value in values) / len(values)
