"""Whether new masks are still the old ones: structural similarity (SSIM), Wang et al. 2004, with a plain 7 x 7 window as AttenCraft uses it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SIDE = 7
K1, K2 = 0.01, 0.03


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """[n] for maps [n, Y, X] with values in 0..1, each side at least 7: mean over all places whose window lies inside. Sample covariances (49 / 48)."""
    a, b = a.double()[:, None], b.double()[:, None]
    count = SIDE**2
    unbiased = count / (count - 1)

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, SIDE, 1)

    ma, mb = mean(a), mean(b)
    va, vb, cov = (unbiased * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b)))
    c1, c2 = K1**2, K2**2
    found = ((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return found.mean((1, 2, 3)).float()
