"""What is said of reward functions that do not help a run, once for each function and condition."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cohort.formulas.spread import all_equal
from cohort.types import Group

PATIENCE = 5
"""Batches in a row in which a condition must hold before it is told."""
LEAST = 20
"""Completions that a reward must have scored before it is said that it never fires."""
LONG = 20
"""Batches without a score above 0 before it is told of a reward that had one earlier."""
SATURATED = 0.95
"""Share of completions at the highest score so far that counts as saturated."""
LEARNED = 0.8
"""A reward that had fewer at its highest before was learned in this run, which is no fault."""
DOMINANT = 0.9
"""Share of the variance of rewards within groups that counts as dominating. Only that variance teaches."""
SCALE = 5.0
"""A reward dominates by its scale where weight * (highest - lowest score) is so many times the others'. One that merely
varies more, since the others are learned already or not yet, does not."""

Tell = Callable[[str, str, int], None]
"""(name, message, level)."""


@dataclass
class _Seen:
    highest: float = float("-inf")
    lowest: float = float("inf")
    least_at_top: float = 1.0
    """The smallest share of a batch's completions at the highest score so far."""
    scored: int = 0
    fired: bool = False
    silent: int = 0
    saturated: int = 0
    dominant: int = 0


class RewardMonitor:
    """Watches the scores of each reward function. Changes nothing."""

    def __init__(
        self,
        names: list[str],
        weights: list[float],
        judges: Collection[str] = (),
        penalties: Collection[str] = (),
        patience: int = PATIENCE,
    ):
        """`judges`: rewards that say what is right, which may dominate; `penalties`: those that are 0 at best."""
        # One that is only logged may do as it likes.
        self.weights = {name: weight for name, weight in zip(names, weights, strict=True) if weight}
        self.judges, self.penalties, self.patience = judges, penalties, patience
        self.seen = {name: _Seen() for name in names}

    def observe(self, groups: list[Group], tell: Tell) -> None:
        """Tell what holds of each reward after this batch; `tell` may be called again with the same."""
        shares = spread_shares(groups, self.weights)
        for name in self.weights:
            scores = [score for group in groups for score in group.components[name] if score is not None]
            if scores:
                self._count(name, scores, shares)
        for name in self.weights:
            self._tell(name, shares, tell)

    def _count(self, name: str, scores: list[float], shares: dict[str, float]) -> None:
        seen = self.seen[name]
        seen.highest, seen.lowest = max(seen.highest, *scores), min(seen.lowest, *scores)
        at_top = sum(score == seen.highest for score in scores) / len(scores)
        seen.least_at_top = min(seen.least_at_top, at_top)
        seen.scored += len(scores)
        seen.fired = seen.fired or any(scores)
        seen.silent = 0 if any(scores) else seen.silent + 1
        seen.saturated = seen.saturated + 1 if seen.highest > 0 and at_top >= SATURATED else 0
        seen.dominant = seen.dominant + 1 if shares.get(name, 0.0) >= DOMINANT else 0

    def _dominates(self, name: str) -> bool:
        others = max((self._scale(other) for other in self.weights if other != name), default=0.0)
        lasting = self.seen[name].dominant >= self.patience and name not in self.judges
        return lasting and 0 < SCALE * others <= self._scale(name)

    def _scale(self, name: str) -> float:
        seen = self.seen[name]
        return abs(self.weights[name]) * max(0.0, seen.highest - seen.lowest)

    def _tell(self, name: str, shares: dict[str, float], tell: Tell) -> None:
        seen, n = self.seen[name], self.patience
        enough = seen.silent >= n and seen.scored >= LEAST if not seen.fired else seen.silent >= max(n, LONG)
        if enough and name not in self.penalties:
            since = "of this run: it never fires" if not seen.fired else "in a row: it no longer fires"
            tell(
                f"{name} silent",
                f"reward {name} has been 0 for every completion of {seen.silent} batches {since}. Unless it is a "
                "penalty, prompts are too hard for it, or it reads another format or column: `cohort reward try` on "
                "completions.jsonl shows what it reads",
                logging.WARNING,
            )
        if seen.saturated >= n:
            alone = not any(share > 0 for other, share in shares.items() if other != name)
            too_easy = alone and seen.least_at_top >= LEARNED
            tell(
                f"{name} saturated",
                f"reward {name} has been at its highest, {seen.highest:g}, for at least {SATURATED:.0%} of the "
                f"completions of {n} batches: it teaches hardly anything more"
                + (", and no other reward does. The prompts are too easy: take harder ones" if too_easy else ""),
                logging.WARNING if too_easy else logging.INFO,
            )
        if self._dominates(name):
            tell(
                f"{name} dominant",
                f"reward {name} has made at least {DOMINANT:.0%} of the spread of rewards within groups for {n} "
                f"batches (now {shares.get(name, 0.0):.0%}), by its scale: scores from {seen.lowest:g} to "
                f"{seen.highest:g} with weight {self.weights[name]:g}. The other rewards hardly count: lower its "
                "weight (reward_weights), or scale its scores to 0 to 1",
                logging.WARNING,
            )

    def state(self) -> dict[str, Any]:
        return {name: asdict(seen) for name, seen in self.seen.items() if seen.scored}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen |= {name: _Seen(**seen) for name, seen in state.items() if name in self.seen}


def spread_shares(groups: list[Group], weights: dict[str, float]) -> dict[str, float]:
    """Each component's share of the weighted variance within groups: w_c^2 var(c) divided by the sum over all. Empty
    where nothing varies."""
    variances = {
        name: sum(weight**2 * _variance(group.components[name]) for group in groups) for name, weight in weights.items()
    }
    total = sum(variances.values())
    return {name: value / total for name, value in variances.items()} if total > 0 else {}


def _variance(scores: list[float | None]) -> float:
    applied = [score for score in scores if score is not None]
    return float(np.var(applied)) if applied and not all_equal(applied) else 0.0
