"""The data of a page: runs as plain values, packed as compressed texts of at most a given size."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohort.report.metrics import series
from cohort.report.page.columns import completion_columns, row_columns, thinned
from cohort.report.page.read import FILES, Lines, Row, configuration, names_of, plain, read_lines, read_object
from cohort.report.page.summary import bands, summary

LARGEST = 26_000_000
"""Most characters of a page's data, all runs together."""
SHARES = {"completions": 0.6, "held_out": 0.15, "groups": 0.2}
"""The part of a run's size that each of its large files may take."""
EXTENDED = ("completions", "held_out", "groups")


@dataclass
class Run:
    """One run as it was read."""

    name: str
    folder: Path
    files: dict[str, Lines]

    def rows(self, name: str) -> list[Row]:
        return self.files[name].rows


def read_runs(folders: list[Path]) -> list[Run]:
    names = names_of(folders)
    return [
        Run(name, folder, {file: read_lines(folder / f"{file}.jsonl") for file in FILES})
        for name, folder in zip(names, folders, strict=True)
    ]


def blocks(runs: list[Run], live: bool = False, largest: int = LARGEST) -> dict[str, str]:
    """Names and packed values: "head" has what the first screen needs, "completions-0" and its like the texts of run
    0. Where a run's texts are too many, whole steps are left out, evenly, and its notes say so."""
    result: dict[str, str] = {}
    heads = []
    for number, run in enumerate(runs):
        notes = [
            f"{name}.jsonl: {lines.skipped} unreadable line{'s' * (lines.skipped > 1)} left out"
            for name, lines in run.files.items()
            if lines.skipped
        ]
        for name in EXTENDED:
            rows = run.rows(name)
            if not rows:
                continue
            allowed = int(largest * SHARES[name] / len(runs))
            result[f"{name}-{number}"], count = _fitting(name, rows, allowed)
            if count < len(rows):
                notes.append(f"{name}.jsonl: {count:,} of {len(rows):,} lines are in this page, to keep it small")
        heads.append(head(run, notes))
    return {"head": packed({"live": live, "runs": heads}), **result}


def head(run: Run, notes: list[str]) -> dict[str, Any]:
    """What the first screen shows of a run."""
    rows, config = run.rows("metrics"), configuration(run.folder)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "config": plain(config),
        "metrics": {
            key: metric for key in sorted({key for row in rows for key in row}) if (metric := _metric(rows, key))
        },
        "rows": row_columns(run.rows("rows")),
        "notes": notes,
        "audit": plain(read_object(run.folder / "audit.json"), 4),
        "place": {name: lines.place for name, lines in run.files.items()},
        **judged(run.folder, rows, run.rows("warnings")),
    }


def judged(folder: Path, rows: list[Row], warnings: list[Row]) -> dict[str, Any]:
    """What changes as a whole when a run goes on."""
    ended = read_object(folder / "ended.json")
    known = ended if {"step", "max_steps", "by"} <= ended.keys() else {}
    # The settings of a comparison's run may lack the method, which then is the folder's name.
    method = str(configuration(folder).get("method", folder.name))
    return {"summary": summary(rows, warnings, known, method), "bands": bands(rows), "ended": plain(known)}


def _metric(rows: list[Row], key: str) -> list[list[Any]] | None:
    """[steps, values]"""
    steps, values = series(rows, key)
    return [[int(step) for step in steps], [plain(value) for value in values]] if steps and key != "step" else None


def _fitting(name: str, rows: list[Row], allowed: int) -> tuple[str, int]:
    """The packed rows, as many as fit, and their number."""
    kept = rows
    for _ in range(8):
        text = packed(kept_form(name, kept))
        if len(text) <= allowed or len({row["step"] for row in kept}) <= 2:
            break
        kept = thinned(kept, 0.9 * allowed / len(text))
    return text, len(kept)


def kept_form(name: str, rows: list[Row]) -> Any:
    return [plain(row, 4) for row in rows] if name == "groups" else completion_columns(rows)


def packed(value: Any) -> str:
    """gzip and base64 of the value's JSON. Lone surrogates, which UTF-8 cannot have, become question marks."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", errors="replace"), 6, mtime=0)).decode("ascii")
