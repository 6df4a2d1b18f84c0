"""Tells once in a run that a reward function takes most of its time."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards

log = logging.getLogger("cohort")

STEPS = 3
"""Sampled batches that are averaged: the first one alone would count what a function does once."""
SECONDS, SHARE = 1.0, 0.5
"""What a step must wait for rewards at least: seconds, and of its duration."""
PREFIX = "seconds/reward/"


class SlowRewards:
    """A callback that compares the time of the rewards with that of the steps."""

    def __init__(self, rewards: Rewards):
        self.rewards = rewards
        self.rows: list[dict[str, Any]] = []
        self.told = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        row = state.log_history[-1]
        if self.told or "seconds/reward" not in row:
            return
        self.rows = [*self.rows, row][-STEPS:]
        if len(self.rows) < STEPS:
            return
        step, waited = self._mean("seconds/step"), self._mean("seconds/reward")
        if waited >= SECONDS and waited >= SHARE * step:
            self.told = True
            name = max((key for key in row if key.startswith(PREFIX)), key=self._mean).removeprefix(PREFIX)
            log.warning(
                "reward %s took %.1f s of each %.1f s step: %s",
                name,
                self._mean(PREFIX + name),
                step,
                _remedy(next(part for part in self.rewards.parts if part.name == name)),
            )

    def _mean(self, key: str) -> float:
        return float(sum(row.get(key, 0.0) for row in self.rows)) / len(self.rows)


def _remedy(part: Component) -> str:
    if hasattr(part.function, "scorer"):
        return "a smaller reward model, or shorter completions, take less"
    if inspect.iscoroutinefunction(part.function):
        return "its calls already run together: the service that it asks is slow"
    place = part.spec if isinstance(part.spec, str) else f"path/to/file.py:{part.name}"
    return f"{{name: {place}, processes: {max(4, 2 * part.processes)}}} calls it in worker processes, each on some rows"
