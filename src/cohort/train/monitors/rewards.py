"""Warns about reward functions that stop being useful during a run, once for each function and condition."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from cohort.formulas.spread import all_equal
from cohort.types import Group

log = logging.getLogger("cohort")

PATIENCE = 20
"""Batches in a row in which a condition must hold before it is logged."""
SATURATED = 0.95
"""Share of completions at the highest score so far that counts as saturated."""
DOMINANT = 0.9
"""Share of the variance of rewards within groups that counts as dominating. Only that variance teaches."""


@dataclass
class _Seen:
    highest: float = float("-inf")
    silent: int = 0
    saturated: int = 0
    dominant: int = 0


class RewardMonitor:
    """Watches the scores of each reward function. Changes nothing; starts with empty counts when a run is resumed."""

    def __init__(self, names: list[str], weights: list[float], patience: int = PATIENCE):
        # One that is only logged may do as it likes.
        self.weights = {name: weight for name, weight in zip(names, weights, strict=True) if weight}
        self.patience = patience
        self._seen = {name: _Seen() for name in names}
        self._told: set[tuple[str, str]] = set()

    def observe(self, groups: list[Group]) -> list[str]:
        """The new warnings for this batch, which are logged too."""
        shares = spread_shares(groups, self.weights)
        messages = [told for name in self.weights for told in self._of(name, groups, shares)]
        for message in messages:
            log.warning("%s", message)
        return messages

    def observe_clipped(self, share: float, bounds: tuple[float, float] | None) -> None:
        """Warn once, at the first batch in which reward_clip changed a total: clipped rewards are equal and teach
        nothing."""
        if share and ("", "clipped") not in self._told:
            self._told.add(("", "clipped"))
            log.warning(
                "reward_clip %s changed %.0f%% of this batch's rewards, which are then alike and teach nothing among "
                "themselves: reward_clip: null leaves rewards as they are",
                list(bounds or ()),
                100 * share,
            )

    def _of(self, name: str, groups: list[Group], shares: dict[str, float]) -> list[str]:
        scores = [score for group in groups for score in group.components[name] if score is not None]
        if not scores:
            return []
        seen, n = self._seen[name], self.patience
        seen.highest = max(seen.highest, *scores)
        at_top = sum(score == seen.highest for score in scores) / len(scores)
        share = shares.get(name, 0.0)
        others = any(value > 0 for other, value in shares.items() if other != name)
        seen.silent = seen.silent + 1 if not any(scores) else 0
        seen.saturated = seen.saturated + 1 if seen.highest > 0 and at_top >= SATURATED else 0
        seen.dominant = seen.dominant + 1 if others and share >= DOMINANT else 0
        return [
            *self._once(name, "silent", seen.silent, f"has been 0 for every completion of {n} batches: it never fires"),
            *self._once(
                name,
                "saturated",
                seen.saturated,
                f"has been at its highest, {seen.highest:g}, for at least {SATURATED:.0%} of the completions of {n} "
                "batches: it is saturated and teaches no more",
            ),
            *self._once(
                name,
                "dominant",
                seen.dominant,
                f"has made at least {DOMINANT:.0%} of the spread of rewards within groups for {n} batches (now "
                f"{share:.0%}): it dominates the sum, the other rewards hardly count; see their weights",
            ),
        ]

    def _once(self, name: str, complaint: str, count: int, message: str) -> list[str]:
        if count < self.patience or (name, complaint) in self._told:
            return []
        self._told.add((name, complaint))
        return [f"reward {name} {message}"]


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
