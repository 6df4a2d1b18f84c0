"""Preference rows: a prompt with a chosen and a rejected completion, as text or messages, and as token ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cohort.config import TrainingConfig
from cohort.data.configured import fit_demonstration
from cohort.data.messages import checked_text
from cohort.data.templates import Demonstration, encode_demonstration
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


def token_ids(row: Row) -> tuple[list[int], list[int], list[int]] | None:
    """(prompt, chosen, rejected) of a pair given as token ids; without prompt_ids, what both begin with is the prompt.
    None for a pair of texts."""
    chosen, rejected = row.columns.get("chosen_ids"), row.columns.get("rejected_ids")
    if chosen is None or rejected is None:
        return None
    prompt = row.columns.get("prompt_ids")
    if prompt is not None:
        return prompt, chosen, rejected
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = min(len(chosen), len(rejected)) if shared is None else shared
    return chosen[:shared], chosen[shared:], rejected[shared:]


def encode_pair(tokenizer: Any, row: Row, config: TrainingConfig) -> list[Demonstration]:
    """The chosen and the rejected completion, each behind the prompt. Raises UserError as encode_demonstration does,
    and for a prompt without tokens."""
    given = token_ids(row)
    if given is not None and not all(given):
        raise UserError(f"{row.source}: the token ids of prompt, chosen or rejected are none: each needs at least one")
    if given is not None:
        return [Demonstration(given[0], each) for each in given[1:]]
    both = [encode_demonstration(tokenizer, each, config.chat_template_kwargs) for each in pair(row)]
    if both[0].prompt != both[1].prompt:  # without a prompt, each begins with the first token of its completion
        raise UserError(f"{row.source}: the prompt of this pair has no tokens; give it some text")
    return both


def fit_pair(both: list[Demonstration], limit: int, truncation: str) -> list[Demonstration] | None:
    """The pair within `limit` tokens: each side as fit_demonstration cuts it, or None if a side is dropped."""
    fitted = [each for side in both if (each := fit_demonstration(side, limit, truncation)) is not None]
    return fitted if len(fitted) == len(both) else None


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
