"""History for refits: a random sample of all earlier training items."""

from __future__ import annotations

import random
from typing import Any

from cohort.data.order import derive

Item = dict[str, Any]
"""A labelled completion or a pair: {"prompt": …, "completion": …, "label": 1.0}. Plain values, ready for JSON."""


class Replay:
    """Reservoir sampling: each of the `seen` items added so far is among the at most `size` stored ones with the same
    probability (Vitter 1985, algorithm R). What is drawn depends on the seed and on `seen` only."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.items: list[Item] = []
        self.seen = 0

    def add(self, items: list[Item]) -> None:
        """Item number n (from 0) is stored at place n while there is room. Later it replaces a random place of the
        first n + 1, if that place is in the buffer."""
        for item in items:
            place = self.seen if self.seen < self.size else derive(self.seed, self.seen) % (self.seen + 1)
            if place < len(self.items):
                self.items[place] = item
            elif place < self.size:
                self.items.append(item)
            self.seen += 1

    def draw(self, count: int, seed: int) -> list[Item]:
        """`count` different random items, or all where there are fewer."""
        return random.Random(seed).sample(self.items, min(count, len(self.items)))

    def state(self) -> dict[str, Any]:
        return {"items": self.items, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.items, self.seen = state["items"], state["seen"]


def history_count(new: int, share: float) -> int:
    """The number h of history items beside `new` ones such that h / (new + h) = share."""
    return round(new * share / (1 - share))
