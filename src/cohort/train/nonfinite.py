"""Batches whose gradient is NaN or infinite, kept to be looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cohort.train.output.groups import plain
from cohort.types import Group

FOLDER = "nonfinite"
MOST = 5
"""Batches that a run keeps."""


def keep_batch(output_dir: Path, step: int, groups: Sequence[Any]) -> Path | None:
    """Write the prompts, completions, rewards and advantages of a step's batch as JSON; returns the file, None where
    there are MOST already, or nothing was sampled."""
    folder = output_dir / FOLDER
    path = folder / f"step-{step}.json"
    batch = [{**plain(group), "advantages": _advantages(group)} for group in groups if isinstance(group, Group)]
    if not batch or (not path.exists() and len(list(folder.glob("step-*.json"))) >= MOST):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(batch, indent=1, default=str), encoding="utf-8")
    return path


def _advantages(group: Group) -> list[float | None]:
    """The first token's of each completion."""
    return [float(values[0]) if len(values) else None for values in group.advantages]
