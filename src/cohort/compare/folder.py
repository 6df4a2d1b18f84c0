"""The folder of one run of a comparison: whether the run is finished, can resume, or had other settings."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from cohort.report.comparison import RESULT
from cohort.train.output.record import SAMPLES
from cohort.types import UserError

SETTINGS = "compared.json"
"""What a comparison gave the run, to recognise one that was made with other settings."""
PREPARATION = "prepared.json"
"""Seconds that each start of the run took before its first step."""


class PreparationTime:
    """Callback that records the time before the first step, such as RFT's sampling."""

    def __init__(self, folder: Path):
        self.path, self.started = folder / PREPARATION, time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.path.write_text(json.dumps([*self._attempts(), time.perf_counter() - self.started]), encoding="utf-8")

    def _attempts(self) -> list[float]:
        """One entry for each start: a resumed run has several."""
        return list(json.loads(self.path.read_text(encoding="utf-8"))) if self.path.exists() else []

    def total(self) -> float:
        return sum(self._attempts())


def can_resume(folder: Path) -> bool:
    """Whether the run can resume: it left samples or a checkpoint."""
    return (folder / SAMPLES).is_file() or any(folder.glob("checkpoint-*"))


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the result of these settings. Raises UserError if its run had other settings."""
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        previous = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in (*settings, *previous) if previous.get(key) != settings.get(key)]
        if changed:
            raise UserError(
                f"{folder} was made with other settings ({_difference(changed[0], previous, settings)}): "
                "choose another output_dir, or delete that folder"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write(path, settings)
    return (folder / RESULT).is_file()


def _difference(key: str, previous: dict[str, Any], settings: dict[str, Any]) -> str:
    was, now = previous.get(key), settings.get(key)
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(k for k in (*was, *now) if was.get(k) != now.get(k))
        return f"{key}: {_difference(inner, was, now)}"
    return f"{key}: {was!r} there, {now!r} now"


def finish(folder: Path, result: dict[str, Any]) -> None:
    write(folder / RESULT, result)
    for path in folder.rglob("checkpoint-*"):
        shutil.rmtree(path)  # a finished run is never resumed


def write(path: Path, values: dict[str, Any]) -> None:
    """Write atomically: an interruption leaves no half-written file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1), encoding="utf-8")
    partial.replace(path)
