"""The table: its sections in the order of docs/metrics.md, and the search for a key."""

from __future__ import annotations

import re

from cohort.report.metric_table.engines import ENGINES
from cohort.report.metric_table.methods import (
    CRITIC,
    DISTILLATION,
    EVALUATION,
    GUARDS,
    ITERATIONS,
    PREFERENCES,
    REWARD_MODELS,
)
from cohort.report.metric_table.record import Metric
from cohort.report.metric_table.training import EVERY_ROW, EVERY_STEP, RATIOS, SAMPLES

SECTIONS = (
    EVERY_ROW,
    EVERY_STEP,
    SAMPLES,
    RATIOS,
    ENGINES,
    CRITIC,
    PREFERENCES,
    DISTILLATION,
    ITERATIONS,
    GUARDS,
    REWARD_MODELS,
    EVALUATION,
)


def metric_of(key: str) -> Metric | None:
    """The metric with this key, a literal key before a pattern; None: the table has none."""
    metrics = [metric for section in SECTIONS for metric in section.metrics]
    exact = next((metric for metric in metrics if key in metric.keys.split()), None)
    return exact or next((metric for metric in metrics if any(fits(key, p) for p in metric.keys.split())), None)


def fits(key: str, pattern: str) -> bool:
    """fits("rewards/accuracy/mean", "rewards/{name}/mean") -> True"""
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(pattern)), key) is not None
