"""Batches whose gradient is NaN or infinite, kept to be looked at."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cohort.config import TrainingConfig
from cohort.policy import ranks
from cohort.train.output import folders
from cohort.train.output.checkpoint import Progress
from cohort.train.output.groups import plain
from cohort.train.sources.source import extremes
from cohort.types import Group, NotFinite

log = logging.getLogger("cohort")

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


def count_skipped(progress: Progress, skipped: bool, config: TrainingConfig) -> None:
    """Count the updates in a row that were left out, and keep their batches. Raises NotFinite after too many."""
    progress.skipped = progress.skipped + 1 if skipped else 0
    if progress.skipped >= config.max_nonfinite_updates:
        raise NotFinite(f"{progress.skipped} updates in a row were left out (max_nonfinite_updates)")
    if skipped and ranks.is_main():
        kept = keep_batch(Path(config.output_dir), progress.step + 1, progress.batch or [])
        if kept is not None:
            log.warning("the batch of the update that was left out is in %s", kept)


@contextmanager
def located(progress: Progress, output_dir: Path) -> Iterator[None]:
    """Adds to a NotFinite where the run was, what its batch has, and what to do."""
    try:
        yield
    except NotFinite as error:
        step = progress.step + 1
        batch = [group for group in progress.batch or [] if isinstance(group, Group)]
        facts = extremes(batch)
        kept = keep_batch(output_dir, step, batch) if ranks.is_main() else None
        raise NotFinite(
            f"step {step}: {error}."
            + (f" The batch has {facts}." if facts else "")
            + (f" It is in {kept}." if kept else "")
            + " Causes "
            "are a learning rate that is too high, rewards without a bound, clipping that is off (max_grad_norm: "
            "0) and half precision. on_nonfinite: skip leaves out updates with such a gradient. "
            + folders.where_to_resume(output_dir)
        ) from error


def _advantages(group: Group) -> list[float | None]:
    """The first token's of each completion."""
    return [float(values[0]) if len(values) else None for values in group.advantages]
