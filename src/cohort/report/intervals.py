"""Confidence intervals of shares and means."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

# fmt: off
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
         2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
         2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423)
"""Student's t: its 97.5% quantile with 1, 2, ... 30 degrees of freedom."""
# fmt: on


def of_mean(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean of independent values with Student's 95% interval; [0, 1, 2] -> (1, -1.48, 3.48).

    More than 31 values use the quantile of 30 degrees of freedom, which is slightly wide. Raises ValueError for
    fewer than 2 values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval of a mean needs at least 2 values, got {len(values)}")
    half = T_975[min(len(values) - 1, len(T_975)) - 1] * stdev(values) / sqrt(len(values))
    mean = fmean(values)
    return mean, mean - half, mean + half
