"""A run's folder in a comparison: whether it is done, begun, or somebody else's."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from cohort.report.comparison import RESULT
from cohort.train.output.record import SAMPLES
from cohort.types import UserError

SETTINGS = "settings.json"
PREPARED = "prepared.json"
"""Seconds of each attempt at what a method makes before its first step."""


class Prepared:
    """Callback: notes how long a run took to its first step, RFT's sampling and the like."""

    def __init__(self, folder: Path):
        self.path, self.started = folder / PREPARED, time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.path.write_text(json.dumps([*self._attempts(), time.perf_counter() - self.started]), encoding="utf-8")

    def _attempts(self) -> list[float]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []

    def total(self) -> float:
        return sum(self._attempts())


def begun(folder: Path) -> bool:
    """Whether there is something to go on from."""
    return (folder / SAMPLES).is_file() or any(folder.glob("checkpoint-*"))


def finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the result of these settings. Raises UserError where it holds other settings' work."""
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in (*settings, *found) if found.get(key) != settings.get(key)]
        if other:
            raise UserError(
                f"{folder} was made with other settings ({_difference(other[0], found, settings)}): choose another "
                "output_dir, or delete that folder"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write(path, settings)
    return (folder / RESULT).is_file()


def _difference(key: str, found: dict[str, Any], settings: dict[str, Any]) -> str:
    was, now = found.get(key), settings.get(key)
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(k for k in (*was, *now) if was.get(k) != now.get(k))
        return f"{key}: {_difference(inner, was, now)}"
    return f"{key}: {was!r} there, {now!r} now"


def finish(folder: Path, result: dict[str, Any]) -> None:
    write(folder / RESULT, result)
    for path in folder.rglob("checkpoint-*"):
        shutil.rmtree(path)  # a finished run never goes on


def write(path: Path, values: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1), encoding="utf-8")
    partial.replace(path)
