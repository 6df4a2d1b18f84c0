"""Confidence intervals of shares."""

from __future__ import annotations

import math


def wilson(successes: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, 95% by default: (low, high). Wilson, JASA 22 (1927).

    Raises ValueError where total is not positive.
    """
    if total <= 0:
        raise ValueError(f"an interval needs at least one trial, got {total}")
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
