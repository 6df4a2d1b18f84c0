"""How well scores rank and predict: AUC, calibration, best-of-n, rank correlation. Plain numbers in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from 1, equal ones share the mean of theirs: [5, 7, 7] -> [1, 2.5, 2.5]."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, at = [0.0] * len(values), 0
    for _, equal in groupby(order, key=lambda i: values[i]):
        places = list(equal)
        for i in places:
            found[i] = at + (len(places) + 1) / 2
        at += len(places)
    return found


def auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Probability that a right one has a higher score than a wrong one, ties half: Mann and Whitney's U over the
    number of pairs. None where one of the kinds is missing."""
    positives = sum(right)
    negatives = len(right) - positives
    if not positives or not negatives:
        return None
    total = math.fsum(rank for rank, good in zip(ranks(scores), right, strict=True) if good)
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation of ranks; None where either side does not vary."""
    return pearson(ranks(a), ranks(b))


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation; None where either side does not vary."""
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
    """Predictions of like size: Bin(predicted=0.72, share=0.8, count=10)"""

    predicted: float
    """Their mean."""
    share: float
    """How many of them came true."""
    count: int


def reliability(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> list[Bin]:
    """Predictions in `bins` intervals of equal width from 0 to 1, those without any left out."""
    found: dict[int, list[tuple[float, float]]] = {}
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        found.setdefault(min(bins - 1, int(probability * bins)), []).append((probability, outcome))
    return [
        Bin(sum(p for p, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs), len(pairs))
        for _, pairs in sorted(found.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean over predictions of |predicted - share| of their bin (Guo et al., arXiv 1706.04599, Eq. 5)."""
    return sum(each.count * abs(each.predicted - each.share) for each in bins) / sum(each.count for each in bins)


def best_of_n(scores: Sequence[float], right: Sequence[float], n: int) -> float:
    """Expected rightness of the highest-scored of n of the samples, drawn without replacement: with samples sorted by
    falling score, sum over i (from 0) of right_i C(m - 1 - i, n - 1) / C(m, n). Exact, so unbiased for n below the
    number m of samples; equal scores share their rightness. Raises ValueError where n exceeds m."""
    m = len(scores)
    if not 1 <= n <= m:
        raise ValueError(f"best of {n} needs at least {n} samples, not {m}")
    order = sorted(range(m), key=lambda i: -scores[i])
    shared: list[float] = []
    for _, equal in groupby(order, key=lambda i: scores[i]):
        places = list(equal)
        shared += [sum(right[i] for i in places) / len(places)] * len(places)
    return sum(value * math.comb(m - 1 - i, n - 1) for i, value in enumerate(shared)) / math.comb(m, n)


def ranking_accuracy(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Share of pairs of a right and a wrong one in which the right one's score is higher, ties half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


def probability(score: float) -> float:
    """The sigmoid of a logit."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
