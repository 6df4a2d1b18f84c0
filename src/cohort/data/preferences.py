"""Preference rows: a prompt with a chosen and a rejected completion, as plain text or chat messages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cohort.data.messages import checked_text
from cohort.types import Row, UserError


def has_pair(row: Row) -> bool:
    return row.columns.get("chosen") is not None and row.columns.get("rejected") is not None


def require_pairs(rows: list[Row], method: str) -> None:
    """Raise UserError naming the first row without a pair."""
    without = next((row for row in rows if not has_pair(row)), None)
    if without is not None:
        columns = ["prompt", *(["completion"] if without.completion is not None else []), *without.columns]
        raise UserError(
            f"{without.source}: {method} needs `chosen` and `rejected`; this file has "
            f"{', '.join(f'`{name}`' for name in columns)}: make pairs with `dpo_pairs: best-worst` (it takes "
            "reward_funcs), or name the columns: `columns: {chosen: ..., rejected: ...}`"
        )


def pair(row: Row) -> tuple[Row, Row]:
    """(row with the chosen completion, row with the rejected one). Raises UserError for a completion that is neither
    text nor messages."""
    return _with_completion(row, "chosen"), _with_completion(row, "rejected")


def _with_completion(row: Row, column: str) -> Row:
    value: Any = row.columns[column]
    completion = checked_text([value] if isinstance(value, dict) else value, row.source, column)
    if isinstance(row.prompt, list) and isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(row.prompt, str) and isinstance(completion, list):
        raise UserError(
            f"{row.source}: `{column}` is chat messages but the prompt is plain text: `system_prompt: ''` makes the "
            "prompt a chat message too"
        )
    return replace(row, completion=completion)
