"""When checkpoints are saved beside save_steps, and which one is the best."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cohort.config import TrainingConfig
from cohort.types import UserError, did_you_mean

log = logging.getLogger("cohort")

BEST = "best.json"
SHARE = 50
"""A checkpoint by time comes at the earliest after so many times the seconds that the last one took."""


class SavingClock:
    """Says when a checkpoint by time is due."""

    def __init__(self, minutes: float | None):
        self.minutes = minutes
        self.last, self.cost = time.monotonic(), 0.0

    def is_due(self) -> bool:
        if self.minutes is None:
            return False
        return time.monotonic() - self.last >= max(60 * self.minutes, SHARE * self.cost)

    @contextmanager
    def saving(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.last = time.monotonic()
        self.cost = self.last - started


class Best:
    """The evaluation with the best value of a metric so far, in best.json of the run's folder."""

    def __init__(self, folder: Path, config: TrainingConfig):
        self.path, self.metric, self.greater = folder / BEST, config.metric_for_best_model, config.greater_is_better
        self.record: dict[str, Any] = {}

    def start(self, step: int) -> None:
        """Read what a run that goes on after the step has found; what is later is forgotten."""
        if self.metric is None or step == 0 or not self.path.is_file():
            return
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            log.warning("%s is not readable: the best checkpoint is looked for anew", self.path)
            return
        if record.get("metric") == self.metric and record.get("step", math.inf) <= step:
            self.record = record

    def see(self, step: int, metrics: dict[str, Any]) -> bool:
        """Whether the evaluation is the best so far. `metrics`: under all the names that the metric may be called by.
        Raises UserError for a metric that it does not have."""
        if self.metric is None:
            return False
        names = (self.metric, f"eval_{self.metric}", f"eval/{self.metric}")
        value = next((metrics[name] for name in names if name in metrics), None)
        if value is None:
            there = [name for name in metrics if name.startswith("eval")]
            raise UserError(
                f"metric_for_best_model is {self.metric!r}, and an evaluation has: {', '.join(there)}"
                f"{did_you_mean(self.metric, there)}"
            )
        sign = 1 if self.greater else -1
        if not math.isfinite(value) or (self.record and sign * value <= sign * self.record["value"]):
            return False
        self.record = {"metric": self.metric, "value": value, "step": step, "checkpoint": f"checkpoint-{step}"}
        return True

    def saved(self) -> None:
        """Write the record, once its checkpoint is there."""
        if self.record and (self.path.parent / self.record["checkpoint"]).is_dir():
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.record), encoding="utf-8")
            partial.replace(self.path)

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the best checkpoint, where there is one."""
        folder = self.path.parent / self.record["checkpoint"] if self.record else None
        return folder if folder is not None and folder.is_dir() else None

    @property
    def spared(self) -> list[str]:
        """Names of checkpoints that are not deleted."""
        return [self.record["checkpoint"]] if self.record else []
