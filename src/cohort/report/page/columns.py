"""Rows of completions in columns, each text once: 100,000 of them fit into a page."""

from __future__ import annotations

import json
from typing import Any

from cohort.report.page.read import Row, plain

NUMBERS = ("step", "row", "group", "index", "problem", "sample", "tokens", "reward", "advantage")
TEXTS = ("prompt", "completion", "why", "columns", "extra", "step_rewards")
"""Kept as numbers of entries of `texts`."""
KNOWN = {*NUMBERS, *TEXTS, "truncated"}
"""Keys that are no score of a component."""


class Texts:
    """Numbers for values, the same for equal ones."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.numbers: dict[str, int] = {}

    def number(self, value: Any) -> int:
        key = value if isinstance(value, str) else "\0" + json.dumps(value, sort_keys=True, default=str)
        number = self.numbers.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(plain(value))
        return number


def completion_columns(rows: list[Row]) -> dict[str, Any]:
    """{"count": 2, "texts": [...], "step": [1, 1], "prompt": [0, 0], "scores": {"accuracy": [1, null]}, ...}. A column
    that no row has is left out."""
    texts = Texts()
    columns: dict[str, Any] = {"count": len(rows)}
    for key in NUMBERS:
        if any(key in row for row in rows):
            columns[key] = [number_of(row.get(key)) for row in rows]
    for key in TEXTS:
        if any(key in row for row in rows):
            columns[key] = [texts.number(row[key]) if key in row else None for row in rows]
    columns["truncated"] = [int(bool(row.get("truncated"))) for row in rows]
    names = dict.fromkeys(key for row in rows for key, value in row.items() if key not in KNOWN and is_score(value))
    columns["scores"] = {name: [number_of(row.get(name)) for row in rows] for name in names}
    return {**columns, "texts": texts.values}


def row_columns(rows: list[Row]) -> dict[str, Any]:
    """The history of the training rows: columns, and each row's prompt as its first line has it."""
    columns: dict[str, Any] = {
        key: [number_of(row.get(key)) for row in rows] for key in ("step", "row", "n", "right", "mean")
    }
    columns["flat"] = [flat_group(row) for row in rows]
    prompts: dict[str, Any] = {}
    for row in rows:
        if "prompt" in row and "row" in row:
            prompts.setdefault(str(row["row"]), plain(row["prompt"]))
    return {**columns, "prompts": prompts}


def flat_group(row: Row) -> int | None:
    """1 where all rewards of the group are equal, which teaches nothing; None where they are not known."""
    rewards = row.get("rewards")
    if not isinstance(rewards, list) or not rewards:
        return None
    return int(len({number_of(reward) for reward in rewards}) == 1)


def is_score(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def number_of(value: Any) -> Any:
    return plain(value, 4) if is_score(value) else None


def thinned(rows: list[Row], share: float) -> list[Row]:
    """About this share of the rows, by whole steps over the whole run; the first and the last step stay."""
    steps = sorted({row["step"] for row in rows})
    count = max(2, int(len(steps) * share))
    if count >= len(steps):
        return rows
    kept = {steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)}
    return [row for row in rows if row["step"] in kept]
