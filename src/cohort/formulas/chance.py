"""Whether measures on held-out data show that a model is better than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def wilson(successes: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (low, high) of successes / total; z = 1.96 gives 95%. Wilson, JASA 22, 1927.

    Raises ValueError unless 0 <= successes <= total and total > 0.
    """
    if total <= 0 or not 0 <= successes <= total:
        raise ValueError(f"an interval needs 0 <= successes <= total and total > 0, got {successes} of {total}")
    share, spread = successes / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    # With no or only successes one bound is exactly 0 or 1; the formula would be off by 1e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)


def of_correlation(r: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Fisher's interval (low, high) of the correlation of n pairs: tanh(atanh r -+ z / sqrt(n - 3)); n < 4: [-1, 1]."""
    if n < 4:
        return -1.0, 1.0
    centre, half = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12)), z / math.sqrt(n - 3)
    return math.tanh(centre - half), math.tanh(centre + half)


def like_chance(held_out: Mapping[str, Any]) -> str | None:
    """What in the measures is no better than chance; None where nothing is, or where they do not say.

    `samples`: how many prompts or texts they are of. Of pairs `accuracy`, whose 95% interval must be above 1/2; of
    labels also `majority`, the share of the more frequent label, which accuracy must exceed; of values `correlation`,
    whose interval must be above 0.
    """
    n = int(held_out.get("samples") or 0)
    if n and held_out.get("correlation") is not None:
        low, high = of_correlation(held_out["correlation"], n)
        text = f"scores and labels correlate by {held_out['correlation']:+.2f} [{low:+.2f}, {high:+.2f}]"
        return None if low > 0 else f"{text}, and 0 is chance"
    if not n or held_out.get("accuracy") is None or held_out.get("majority") == 1:
        return None
    accuracy, majority = float(held_out["accuracy"]), held_out.get("majority")
    if majority is not None:
        text = f"{accuracy:.1%} of its verdicts agree with the labels, and the more frequent label alone with"
        return None if accuracy > majority else f"{text} {majority:.1%}"
    low, high = wilson(accuracy * n, n)
    return None if low > 0.5 else f"it orders {accuracy:.1%} [{low:.1%}, {high:.1%}] of the pairs, and 50% is chance"
