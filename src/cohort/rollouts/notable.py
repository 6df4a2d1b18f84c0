"""Chooses the completions of a batch that are written to completions.jsonl: first, most rewarded, strangest."""

from __future__ import annotations

import math
import re
import zlib
from functools import cache
from statistics import median

from cohort.types import Group

Place = tuple[int, int]
"""(group, completion)."""
SYMBOLS = re.compile(r"[^\w\s]|_")


def notable(groups: list[Group], count: int) -> list[tuple[Place, str]]:
    """`count` completions with the reason for each, in the batch's order: a quarter "most rewarded", a quarter
    "strangest" (one of each from three on), and the first others as "sample"."""
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.completions))]
    if not places or not count:
        return []
    share = max(1, count // 4) if count >= 3 else 0
    kept: dict[Place, str] = {}
    for why, value in (("most rewarded", _rewards(groups, places)), ("strangest", strangeness(groups, places))):
        left = [n for n, place in enumerate(places) if place not in kept] if value else []
        for n in sorted(left, key=lambda n: -value[n])[:share]:
            kept[places[n]] = why
    for place in places:
        if len(kept) >= count:
            break
        kept.setdefault(place, "sample")
    return [(place, kept[place]) for place in sorted(kept)]


def _rewards(groups: list[Group], places: list[Place]) -> list[float]:
    """The reward of each completion; nothing in a run without rewards."""
    return [] if not groups[0].rewards else [groups[g].rewards[i] for g, i in places]


def strangeness(groups: list[Group], places: list[Place]) -> list[float]:
    """The distance of each completion from the batch's median in the feature in which it differs most: length,
    repetition, symbols.

    The distance is |x - median| / (median absolute deviation + floor) of log length, of the compressed size relative to
    the text's, and of the share of characters that are neither letters, digits nor spaces.
    """
    of = cache(_features)
    features = [of(groups[g].completions[i].text) for g, i in places]
    distances = []
    for column, floor in zip(zip(*features, strict=True), (0.1, 0.05, 0.02), strict=True):
        middle = median(column)
        spread = median(abs(value - middle) for value in column) + floor
        distances.append([abs(value - middle) / spread for value in column])
    return [max(row) for row in zip(*distances, strict=True)]


def _features(text: str) -> tuple[float, float, float]:
    data = text.encode(errors="replace")
    symbols = len(SYMBOLS.findall(text))
    return math.log1p(len(text)), len(zlib.compress(data, 1)) / (len(data) + 20), symbols / max(1, len(text))
