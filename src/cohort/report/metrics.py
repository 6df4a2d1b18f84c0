"""Reads a run's metrics.jsonl: its rows, the series of one metric, the names of held-out scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cohort.types import UserError

Rows = list[dict[str, Any]]
NOT_COMPONENTS = ("eval/reward", "eval/samples", "eval/loss", "eval/teacher_kl")
"""Metrics named eval/... that are not the score of one reward function."""


def read_metrics(path: str | Path) -> Rows:
    """Rows of a metrics.jsonl, from its path or its folder. A half-written last line is skipped.

    Raises UserError if the file is missing or another line is not a JSON object.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run's output_dir, where training writes metrics.jsonl")
    # Not splitlines: the names of rewards and metrics may hold U+2028 and its like, which JSON leaves as they are.
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parsed(line)
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path} line {number}: not a JSON object with a `step`: {line[:80]!r}")
    return rows


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of a metric in order of steps: finite values only, and the last of a step with several."""
    values = {row["step"]: row[key] for row in rows if _finite(row.get(key))}
    steps = sorted(values)
    return [float(step) for step in steps], [float(values[step]) for step in steps]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def component_keys(row: dict[str, Any]) -> list[str]:
    """Keys of the held-out scores of single reward functions, accuracy first: ["eval/accuracy", "eval/format"]."""
    keys = [key for key in row if key.startswith("eval/") and key.count("/") == 1 and key not in NOT_COMPONENTS]
    return sorted(keys, key=lambda key: key != "eval/accuracy")
