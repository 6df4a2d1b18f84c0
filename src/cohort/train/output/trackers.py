"""Metrics to a tracker, beside metrics.jsonl."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from cohort.config import TrainingConfig
from cohort.types import UserError

log = logging.getLogger("cohort")


def trackers(config: TrainingConfig) -> list[Any]:
    """Callbacks for `report_to`. Raises UserError for a tracker that is not installed."""
    if config.logging_dir is not None and not config.report_to:
        log.warning("logging_dir has no effect without report_to: tensorboard; metrics.jsonl is in output_dir")
    return [TensorBoard(Path(config.logging_dir or Path(config.output_dir) / "runs"))] if config.report_to else []


class TensorBoard:
    """Writes every logged and evaluated number as a scalar."""

    def __init__(self, folder: Path):
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise UserError("report_to: tensorboard needs the package: pip install tensorboard") from None
        self.folder, self._writer_class = folder, EventFileWriter
        self._writer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._writer = self._writer_class(str(self.folder))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        self._write(logs, state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **_: Any) -> None:
        self._write(metrics, state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._writer.close()
        self._writer = None

    def _write(self, values: dict[str, Any], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:  # evaluate() before or after train()
            self._writer = self._writer_class(str(self.folder))
        scalars = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        ]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self._writer.flush()
