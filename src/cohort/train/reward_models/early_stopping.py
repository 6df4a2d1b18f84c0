"""Stops a run whose held-out loss no longer falls, and keeps the model with the lowest loss."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from cohort.train.output import checkpoint
from cohort.train.output.record import METRICS

log = logging.getLogger("cohort")


class EarlyStopping:
    """A callback. It reads earlier losses from metrics.jsonl, so that a resumed run stops at the same step. The best
    weights are in `best/` until the run ends."""

    stops_by = "early_stopping_patience"

    def __init__(self, model: Any, folder: Path, patience: int):
        self.model, self.folder, self.patience = model, folder, patience
        self.best_step, self.best_loss, self.since = -1, float("inf"), 0

    @property
    def best(self) -> Path:
        return self.folder / "best"

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        path = self.folder / METRICS
        # Not splitlines: names of metrics may hold U+2028 and its like.
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else ()
        for row in map(json.loads, filter(None, lines)):
            if "eval/loss" in row:
                self._seen(row)

    def on_evaluate(self, args: Any, state: Any, control: Any, row: dict[str, Any], **_: Any) -> None:
        if self._seen(row):
            partial = self.folder / "partial-best"
            checkpoint.save_policy(self.model, partial)
            shutil.rmtree(self.best, ignore_errors=True)
            partial.rename(self.best)
        elif self.since >= self.patience:
            log.info("stopping: the held-out loss has not fallen below %.4g for %d evaluations", *self._told())
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.best.is_dir() and self.since:
            checkpoint.load_weights(self.best, self.model)
            log.info("kept: the model of step %d, whose held-out loss was %.4g", self.best_step, self.best_loss)
        shutil.rmtree(self.best, ignore_errors=True)

    def _seen(self, row: dict[str, Any]) -> bool:
        """Whether this is the lowest loss so far."""
        if row["eval/loss"] < self.best_loss:
            self.best_step, self.best_loss, self.since = row["step"], row["eval/loss"], 0
            return True
        self.since += 1
        return False

    def _told(self) -> tuple[float, int]:
        return self.best_loss, self.since
