"""The records of the table."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """Metric("rewards/{name}/mean", "Mean score of ...", "reward", "rises", "Look at ...")"""

    keys: str
    """One key or several, with spaces between. {name} stands for a name without a slash."""
    meaning: str
    unit: str
    healthy: str
    otherwise: str = ""
    """What to do where it is not."""


class Section(NamedTuple):
    """The metrics of one kind of run or row."""

    title: str
    about: str
    metrics: tuple[Metric, ...]
