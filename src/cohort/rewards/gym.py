"""The verifiers of reasoning-gym's tasks as a reward."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from cohort.rewards.answers import between, boxed, text_of
from cohort.types import Text, UserError


def reasoning_gym(completions: list[Text], **columns: Any) -> list[float | None]:
    """The task's own `score_answer`, 0 to 1, for rows of a `reasoning_gym:TASK` dataset.

    The answer is the last `<answer>...</answer>`, else the last boxed one, else the whole text. Raises UserError where the
    rows are not of such a dataset.
    """
    if "reasoning_gym_task" not in columns or "reasoning_gym_entry" not in columns:
        raise UserError("the reward reasoning_gym needs a dataset such as `reasoning_gym:chain_sum`")
    scores: list[float | None] = []
    rows = zip(completions, columns["reasoning_gym_task"], columns["reasoning_gym_entry"], strict=True)
    for completion, task, entry in rows:
        text = text_of(completion)
        found = between(text, "<answer>", "</answer>")
        found = boxed(text) if found is None else found
        scores.append(float(_task(task).score_answer((text if found is None else found).strip(), json.loads(entry))))
    return scores


@lru_cache(maxsize=8)
def _task(name: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, size=1)
