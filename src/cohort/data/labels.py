"""Labels of rows for reward models: of completions, of pairs, and of a completion's steps."""

from __future__ import annotations

import math
from typing import Any

from cohort.data.preferences import has_pair, pair, token_ids
from cohort.types import Row, Text, UserError


def label(row: Row, column: str = "label") -> float:
    """The row's label as a number (true is 1). Raises UserError if it is missing or not finite."""
    if row.completion is None or column not in row.columns:
        raise UserError(
            f"{row.source}: a reward model learns from `prompt`, `completion` and `label`, or from `chosen` and "
            f"`rejected`; this row has {_columns(row)}: map the columns, `columns: {{label: ...}}`"
        )
    return _number(row.columns[column], row, column)


def sides(row: Row) -> tuple[Text, Text, float]:
    """(chosen, rejected, margin) of a pair; the margin is 0 without that column. Raises UserError if the row has no
    pair, or both sides are equal."""
    if not has_pair(row):
        raise UserError(
            f"{row.source}: needs `chosen` and `rejected`, as the first row has; this row has {_columns(row)}"
        )
    chosen, rejected = (each.completion for each in pair(row))
    assert chosen is not None and rejected is not None
    ids = token_ids(row)
    one, other = (chosen, rejected) if ids is None else ids[1:]
    if one == other:
        raise UserError(
            f"{row.source}: chosen and rejected are identical ({str(one)[:60]!r}): such a pair has nothing to "
            "learn from; leave it out"
        )
    margin = row.columns.get("margin")
    return chosen, rejected, 0.0 if margin is None else _number(margin, row, "margin")


def step_labels(row: Row) -> list[float]:
    """The labels of the row's steps, numbers from 0 to 1. Raises UserError if they are missing or out of range."""
    labels = row.columns.get("labels")
    if not isinstance(labels, list | tuple):
        raise UserError(
            f"{row.source}: a process reward model learns from `prompt`, `completion` and `labels`, a list with one "
            f"label for each step; this row has {_columns(row)}"
        )
    return [probability(_number(each, row, "labels"), row, "labels") for each in labels]


def probability(value: float, row: Row, column: str) -> float:
    """The value. Raises UserError unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise UserError(
            f"{row.source}: `{column}` is {value:g}, out of range: a label is a probability from 0 to 1 (scores of "
            "another range: `loss_type: mse`)"
            if column == "label"
            else f"{row.source}: `{column}` holds {value:g}, out of range: the label of a step is from 0 to 1"
        )
    return value


def _number(value: Any, row: Row, column: str) -> float:
    if isinstance(value, str):  # a cell of a CSV file
        value = _as_number(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(
            f"{row.source}: `{column}` holds {str(value)[:60]!r}; it must be a finite number, true or false"
        )
    return float(value)


def _as_number(text: str) -> float | str:
    """The number that a text is, 1 for `true` and 0 for `false`; any other text unchanged."""
    words = {"true": 1.0, "false": 0.0}
    try:
        return words[text.strip().lower()] if text.strip().lower() in words else float(text)
    except ValueError:
        return text


def _columns(row: Row) -> str:
    return ", ".join(["prompt", *(["completion"] if row.completion is not None else []), *row.columns])
