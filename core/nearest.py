"""Nearest-neighbour copying: each row of some features becomes the most similar row of others.

Source: DiffUHaul (arXiv 2406.01594), the later denoising steps: what the object looked like is copied where it stands now. The paper names the
principle; cosine similarity in fp32 and the tie-break are ours: the row that a plain move of the object brings wins unless another is more
similar by :data:`MARGIN`, so an object that does not move is copied onto itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 1e-4
CHUNK = 1024
"""Queries compared at a time: the similarities never take more than this times the number of source rows."""


def nearest(query: Tensor, source: Tensor, preferred: Tensor | None = None) -> Tensor:
    """int64 [P]: for each row of ``query`` [P, C] the row of ``source`` [Q, C] with the greatest cosine.

    preferred int64 [P]: rows of ``source`` that win ties; the first of equal rows wins without it.
    """
    own = torch.nn.functional.normalize(source.float(), dim=1)
    found = [_nearest(torch.nn.functional.normalize(part.float(), dim=1), own) for part in query.split(CHUNK)]
    best, at = torch.cat([b for b, _ in found]), torch.cat([a for _, a in found])
    if preferred is None:
        return at
    kept = (torch.nn.functional.normalize(query.float(), dim=1) * own[preferred]).sum(1)
    return torch.where(best > kept + MARGIN, at, preferred)


def _nearest(query: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    best, at = (query @ source.T).max(1)
    return best, at
