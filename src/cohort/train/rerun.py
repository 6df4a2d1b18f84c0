"""Repeats a run from its own folder, and compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from cohort.config import read_run
from cohort.report.metrics import Rows, read_metrics
from cohort.train.run import train_from_config
from cohort.types import UserError

TIMES = ("seconds", "tokens_per_second")
SHOWN = 5
"""Metrics of the first step that differs."""


def rerun(folder: Path, output: Path, callbacks: Sequence[Any] = ()) -> list[str]:
    """Train once more by the folder's config.yaml, into `output`, and return the differences: none means the same
    metrics and weights to the bit. Raises UserError for a folder that has no configuration, or an output that is
    there."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the output_dir of a run that `cohort train` made")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is there already: give another --output")
    read_metrics(folder)
    run, settings = read_run(path, [f"output_dir={output}", "resume_from_checkpoint=false", "push_to_hub=false"])
    train_from_config(run, settings, callbacks=callbacks)
    return differences(folder, output)


def differences(first: Path, second: Path) -> list[str]:
    """Lines on what differs between two runs' metrics, times left out, and weights."""
    return [*_of_metrics(read_metrics(first), read_metrics(second)), *_of_weights(first, second)]


def _of_metrics(first: Rows, second: Rows) -> list[str]:
    for ours, theirs in zip(first, second, strict=False):
        keys = [key for key in {**ours, **theirs} if not key.startswith(TIMES) and ours.get(key) != theirs.get(key)]
        if keys:
            shown = ", ".join(f"{key} {ours.get(key)} and {theirs.get(key)}" for key in keys[:SHOWN])
            more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            return [f"step {ours['step']}: {shown}{more}"]
    return [] if len(first) == len(second) else [f"{len(first)} rows of metrics and {len(second)}"]


def _of_weights(first: Path, second: Path) -> list[str]:
    lines = []
    names = sorted({path.name for folder in (first, second) for path in folder.glob("*.safetensors")})
    for name in names:
        if not ((first / name).is_file() and (second / name).is_file()):
            lines.append(f"{name} is in one folder alone")
            continue
        with safe_open(first / name, "pt") as ours, safe_open(second / name, "pt") as theirs:
            if sorted(ours.keys()) != sorted(theirs.keys()):
                lines.append(f"{name}: other tensors")
                continue
            changed = [key for key in ours.keys() if not ours.get_tensor(key).equal(theirs.get_tensor(key))]  # noqa: SIM118
        if changed:
            lines.append(f"{name}: {len(changed)} tensors differ, first {changed[0]}")
    return lines
