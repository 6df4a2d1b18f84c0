"""Statistics of scores against labels: AUC, calibration, best-of-n, rank correlation. Plain numbers in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank: [5, 7, 7] -> [1, 2.5, 2.5]."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    result, smaller = [0.0] * len(values), 0
    for _, equal in groupby(order, key=lambda i: values[i]):
        indices = list(equal)
        for i in indices:
            result[i] = smaller + (len(indices) + 1) / 2
        smaller += len(indices)
    return result


def auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Probability that a right text has a higher score than a wrong one, ties counted half: Mann and Whitney's U over
    the number of pairs. None if there are no right or no wrong ones."""
    positives = sum(right)
    negatives = len(right) - positives
    if not positives or not negatives:
        return None
    total = math.fsum(rank for rank, good in zip(ranks(scores), right, strict=True) if good)
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None if either side is constant."""
    return pearson(ranks(a), ranks(b))


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation; None if either side is constant."""
    n = len(a)
    if n < 2:
        return None
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    spread = math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b)
    return (
        math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / math.sqrt(spread)
        if spread
        else None
    )


class Bin(NamedTuple):
    """Predictions of one interval: Bin(predicted=0.72, share=0.8, size=10)"""

    predicted: float
    """Mean prediction."""
    share: float
    """Mean outcome."""
    size: int


def reliability(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> list[Bin]:
    """Predictions grouped in `bins` intervals of equal width from 0 to 1; empty intervals are left out."""
    by_bin: dict[int, list[tuple[float, float]]] = {}
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        by_bin.setdefault(min(bins - 1, int(probability * bins)), []).append((probability, outcome))
    return [
        Bin(sum(p for p, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs), len(pairs))
        for _, pairs in sorted(by_bin.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean over predictions of |predicted - share| of their bin (Guo et al., arXiv 1706.04599, Eq. 5)."""
    return sum(each.size * abs(each.predicted - each.share) for each in bins) / sum(each.size for each in bins)


def best_of_n(scores: Sequence[float], right: Sequence[float], n: int) -> float:
    """Expected label of the highest-scored of n samples drawn without replacement from m: with samples sorted by
    falling score, sum over i (from 0) of right_i C(m - 1 - i, n - 1) / C(m, n). Samples with equal scores count with
    their mean label. Raises ValueError if n exceeds m."""
    m = len(scores)
    if not 1 <= n <= m:
        raise ValueError(f"best of {n} needs at least {n} samples, not {m}")
    order = sorted(range(m), key=lambda i: -scores[i])
    shared: list[float] = []
    for _, equal in groupby(order, key=lambda i: scores[i]):
        indices = list(equal)
        shared += [sum(right[i] for i in indices) / len(indices)] * len(indices)
    return sum(value * math.comb(m - 1 - i, n - 1) for i, value in enumerate(shared)) / math.comb(m, n)


def ranking_accuracy(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Share of pairs of a right and a wrong text in which the right one's score is higher; ties count half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


def probability(score: float) -> float:
    """The sigmoid of a logit."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
