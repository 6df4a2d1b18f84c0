"""History that a reward model sees again while it learns from new samples."""

from __future__ import annotations

import random
from typing import Any

from cohort.data.order import derive

Item = dict[str, Any]
"""A labelled completion, or a pair: {"prompt": …, "completion": …, "label": 1.0}; plain values, ready for JSON."""


class Replay:
    """A reservoir: each of the `seen` items that were ever added is among the at most `size` kept ones with the same
    chance (Vitter 1985, algorithm R). What is drawn is a function of the seed and of `seen`."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.items: list[Item] = []
        self.seen = 0

    def add(self, items: list[Item]) -> None:
        """Item number n (from 0) takes place n while there is room, then a random place of the first n + 1 where
        that is one of the buffer's."""
        for item in items:
            place = self.seen if self.seen < self.size else derive(self.seed, self.seen) % (self.seen + 1)
            if place < len(self.items):
                self.items[place] = item
            elif place < self.size:
                self.items.append(item)
            self.seen += 1

    def draw(self, count: int, seed: int) -> list[Item]:
        """`count` different items at random, fewer where there are not as many."""
        return random.Random(seed).sample(self.items, min(count, len(self.items)))

    def state(self) -> dict[str, Any]:
        return {"items": self.items, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.items, self.seen = state["items"], state["seen"]


def history_count(new: int, share: float) -> int:
    """Items of history beside `new` ones, so that they are `share` of both together: h / (new + h) = share."""
    return round(new * share / (1 - share))
