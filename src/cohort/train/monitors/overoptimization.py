"""Detects reward over-optimisation: the gold reward falls while the reward that is learned from rises (Gao et al.,
arXiv 2210.10760)."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from cohort.types import Group

log = logging.getLogger("cohort")

WINDOW = 8
"""Batches in a window; means of windows are compared."""
SURE = 4.0
"""Standard errors by which gold must have fallen. The best window is chosen among many, so its mean is biased
upwards."""


@dataclass(frozen=True)
class Point:
    """One batch. Point(step=12, kl=3.1, proxy=0.82, gold=0.55, model=0)"""

    step: int
    kl: float
    """KL between the policy and the run's starting model, in nats per completion."""
    proxy: float
    """Mean of the reward that is learned from."""
    gold: float
    """Mean of the gold reward."""
    model: int = 0
    """Number of refits so far: proxy rewards of different models cannot be compared."""


def parting(points: list[Point], window: int = WINDOW, sure: float = SURE) -> Point | None:
    """Where gold began to fall while the proxy rose: the middle of its best window, or None where it did not.

    Gold has fallen where the mean of the last `window` batches lies below that of the best `window` before them by more
    than `sure` standard errors, sqrt((var_best + var_last) / window). The proxy has risen where its mean over the last
    window is above its mean over that best window; where the reward model was refitted since, over the current
    model's first window, for which there must be two windows of batches.
    """
    if len(points) < 2 * window:
        return None
    last = points[-window:]
    sums = [0.0, *accumulate(point.gold for point in points)]
    start = max(range(len(points) - 2 * window + 1), key=lambda i: sums[i + window] - sums[i])
    best = points[start : start + window]
    fall = statistics.fmean(p.gold for p in best) - statistics.fmean(p.gold for p in last)
    variances = statistics.variance([p.gold for p in best]) + statistics.variance([p.gold for p in last])
    if fall <= sure * math.sqrt(variances / window) or fall <= 0:
        return None
    before = best
    if best[0].model != last[-1].model:
        before = [p for p in points[:-window] if p.model == last[-1].model][:window]
        if len(before) < window:
            return None
    risen = statistics.fmean(p.proxy for p in last) - statistics.fmean(p.proxy for p in before)
    return best[window // 2] if risen > 0 else None


class GoldGuard:
    """Records gold and proxy reward of each batch and detects where they part. As a callback it stops the run there if
    the configuration asks for it."""

    stops_by = "stop_on_overoptimization"

    def __init__(self, weights: Mapping[str, float], gold: str, kl: Callable[[list[Group]], float], stop: bool):
        """`weights`: the weight of each reward; `kl`: a function from groups to the KL between the policy and the
        starting model, in nats per completion."""
        self.weights = {name: weight for name, weight in weights.items() if name != gold and weight}
        self.gold, self.kl, self.stop = gold, kl, stop
        self.points: list[Point] = []
        self.peak: Point | None = None
        """The point from which gold fell while the proxy rose; None so far."""

    def see(self, groups: list[Group], step: int, model: int) -> dict[str, float]:
        """Record the batch that `step` learns from; returns metrics."""
        proxy = sum(weight * _mean(groups, name) for name, weight in self.weights.items())
        self.points.append(Point(step, self.kl(groups), proxy, _mean(groups, self.gold), model))
        if self.peak is None:
            self.peak = parting(self.points)
            if self.peak is not None:
                self._warn(self.peak, self.points[-1])
        point = self.points[-1]
        row = {"guard/proxy": point.proxy, "guard/gold": point.gold, "guard/kl": point.kl}
        return row if self.peak is None else {**row, "guard/overoptimized_from": float(self.peak.step)}

    def _warn(self, peak: Point, now: Point) -> None:
        log.warning(
            "over-optimisation: %s falls while the rewards that are learned from rise. It was highest around step %d "
            "(KL %.3g, %s %.3g); now, at step %d, KL %.3g, it is %.3g. %s",
            self.gold,
            peak.step,
            peak.kl,
            self.gold,
            peak.gold,
            now.step,
            now.kl,
            now.gold,
            "The run stops (stop_on_overoptimization)"
            if self.stop
            else "Refit the reward model (reward_model_refit), raise beta, or stop there: stop_on_overoptimization",
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stop and self.peak is not None:
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        return {"points": [asdict(p) for p in self.points], "peak": None if self.peak is None else asdict(self.peak)}

    def restore(self, state: dict[str, Any]) -> None:
        self.points = [Point(**point) for point in state["points"]]
        self.peak = None if state["peak"] is None else Point(**state["peak"])


def _mean(groups: list[Group], name: str) -> float:
    """Mean score of the completions that the reward applies to; 0 where there are none."""
    scores = [score for group in groups for score in group.components[name] if score is not None]
    return statistics.fmean(scores) if scores else 0.0
