"""Warns where the scores of a reward model during a run differ from those on its validation set."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cohort.formulas.spread import EPS, all_equal
from cohort.types import Group

log = logging.getLogger("cohort")

PATIENCE = 10
"""Batches in a row in which a condition must hold before it is logged."""
FAR = 10.0
"""Absolute mean score above which a warning is logged at once."""
DRIFT = 3.0
"""Distance from the validation mean, in validation standard deviations, that counts as drift."""
OUTSIDE = 0.25
"""Share of a batch's scores beyond that distance that counts as drift too."""
COLLAPSED = 0.1
"""A batch's standard deviation below this share of the validation set's counts as collapsed."""
LENGTH = 0.7
"""Correlation of score and length within groups above which the model is said to follow length."""


@dataclass(frozen=True)
class Validation:
    """A reward model's scores on its validation set. Validation(mean=0.4, std=2.1)"""

    mean: float
    std: float


def validation_of(scores: list[float]) -> Validation:
    return Validation(statistics.fmean(scores), statistics.pstdev(scores))


class RewardModelGuard:
    """Compares reward models' scores with those on their validation sets, batch by batch."""

    def __init__(self, validation: Mapping[str, Validation | None], patience: int = PATIENCE):
        """`validation`: name of the reward model -> its validation scores; None: the first batch is used instead."""
        self.validation = dict(validation)
        self.patience = patience
        self.counts: dict[str, int] = {}
        self.told: list[str] = []

    def see(self, groups: list[Group]) -> dict[str, float]:
        """Compare a batch; logs warnings and returns metrics."""
        metrics: dict[str, float] = {}
        for name in self.validation:
            scores = [s for group in groups for s in group.components[name] if s is not None]
            if scores:
                metrics |= self._of(name, scores, length_correlation(groups, name))
        return metrics

    def _of(self, name: str, scores: list[float], by_length: float) -> dict[str, float]:
        mean, std = statistics.fmean(scores), statistics.pstdev(scores)
        known = self.validation[name]
        if known is None:
            known = self.validation[name] = validation_of(scores)
        scale = max(known.std, EPS)
        drift, spread = (mean - known.mean) / scale, std / scale
        outside = sum(abs(score - known.mean) > DRIFT * scale for score in scores) / len(scores)
        n = self.patience
        complaints = {
            "far": (
                abs(mean) > FAR,
                1,
                f"has a mean of {mean:.3g}, beyond ±{FAR:g}: lower its weight, or give it a clip",
            ),
            "drift": (
                abs(drift) > DRIFT or outside > OUTSIDE,
                n,
                f"scores other completions than it was tried on: for {n} batches their mean, or over {OUTSIDE:.0%} of "
                f"them, has been over {DRIFT:g} standard deviations from the mean of its validation set (now the "
                f"mean {drift:+.1f}, and {outside:.0%} of them)",
            ),
            "collapsed": (
                spread < COLLAPSED,
                n,
                f"hardly tells completions apart: for {n} batches the spread of its scores has been below "
                f"{COLLAPSED:.0%} of the validation set's (now {spread:.1%})",
            ),
            "length": (
                abs(by_length) > LENGTH,
                n,
                f"follows length: for {n} batches its scores have had a correlation beyond ±{LENGTH:g} with the length "
                f"of completions of one prompt (now {by_length:+.2f})",
            ),
        }
        for complaint, (holds, patience, message) in complaints.items():
            self._tell(name, complaint, holds, patience, message)
        values = {"drift": drift, "outside": outside, "spread": spread, "length_correlation": by_length}
        return {f"guard/{name}/{key}": value for key, value in values.items()}

    def _tell(self, name: str, complaint: str, holds: bool, patience: int, message: str) -> None:
        """Warn once, after the condition has held for `patience` batches in a row."""
        key = f"{name}/{complaint}"
        self.counts[key] = self.counts.get(key, 0) + 1 if holds else 0
        if self.counts[key] >= patience and key not in self.told:
            self.told.append(key)
            log.warning("reward model %s %s", name, message)

    def start_anew(self, name: str, validation: Validation) -> None:
        """Reset after a refit: later scores are compared with `validation`, and warnings may be given again."""
        self.validation[name] = validation
        self.counts = {key: count for key, count in self.counts.items() if not key.startswith(f"{name}/")}
        self.told = [key for key in self.told if not key.startswith(f"{name}/")]

    def state(self) -> dict[str, Any]:
        validation = {name: None if known is None else asdict(known) for name, known in self.validation.items()}
        return {"validation": validation, "counts": self.counts, "told": self.told}

    def restore(self, state: dict[str, Any]) -> None:
        saved = state["validation"]
        self.validation = {name: None if known is None else Validation(**known) for name, known in saved.items()}
        self.counts, self.told = state["counts"], state["told"]


def length_correlation(groups: list[Group], name: str) -> float:
    """Pearson's r of score and length in tokens, both less their group's mean; 0 where either does not vary."""
    pairs: list[tuple[float, float]] = []
    for group in groups:
        of_group = [
            (s, float(len(c.ids)))
            for s, c in zip(group.components[name], group.completions, strict=True)
            if s is not None
        ]
        if of_group:
            score, length = (statistics.fmean(column) for column in zip(*of_group, strict=True))
            alike = all_equal([s for s, _ in of_group])  # their rounding correlates with anything
            pairs += [(0.0 if alike else s - score, n - length) for s, n in of_group]
    over = math.sqrt(sum(s * s for s, _ in pairs) * sum(n * n for _, n in pairs))
    return sum(s * n for s, n in pairs) / over if over > 0 else 0.0
