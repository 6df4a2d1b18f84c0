"""Confidence intervals of shares."""

from __future__ import annotations

from math import sqrt


def wilson(successes: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (low, high) of successes / total; z = 1.96 gives 95%. Wilson, JASA 22, 1927.

    Raises ValueError unless 0 <= successes <= total and total > 0.
    """
    if total <= 0 or not 0 <= successes <= total:
        raise ValueError(f"an interval needs 0 <= successes <= total and total > 0, got {successes} of {total}")
    share, spread = successes / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    # At 0 and at all successes the bounds are exact; rounding would miss them by 1e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)
