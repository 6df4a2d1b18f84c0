"""Reasoning Gym's verifiers as a reward."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cohort.rewards.answers.extract import answer_part, last_boxed, last_tagged
from cohort.rewards.answers.verify import Worker
from cohort.rewards.functions.text import content, opened_marks
from cohort.types import Text, UserError

# Some verifiers evaluate the answer as an expression, so they run in a separate process with a time limit.
_verifiers = Worker("gym")


def reasoning_gym(
    completions: Sequence[Text],
    reasoning_gym_task: Sequence[str | None] | None = None,
    reasoning_gym_entry: Sequence[str | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The score of the task's verifier, 0 to 1; None for rows of other data. Entries are JSON."""
    if reasoning_gym_task is None or reasoning_gym_entry is None:
        raise UserError(
            "reasoning_gym needs the columns reasoning_gym_task and reasoning_gym_entry, "
            "which Reasoning Gym's datasets have; for other data use accuracy"
        )
    marks = opened_marks(len(completions), columns)
    rows = zip(completions, marks, reasoning_gym_task, reasoning_gym_entry, strict=True)
    texts = [(answer_part(content(text), mark is not None), task, entry) for text, mark, task, entry in rows]
    return [_score(*each) for each in texts]


def _score(text: str, task: str | None, entry: str | None) -> float | None:
    if task is None or entry is None:
        return None
    answer = last_tagged(text, "answer")
    if answer is None:
        answer = last_boxed(text)
    score = _verifiers.ask([task, (text if answer is None else answer).strip(), json.loads(entry)])
    if isinstance(score, str):
        raise UserError(f"reasoning_gym cannot score task {task!r}: {score}. The entry: {entry[:200]}")
    return score or 0.0
