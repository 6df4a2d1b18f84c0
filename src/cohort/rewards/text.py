"""Reward functions over text, each `f(completions, **columns) -> list[float | None]` as in TRL, plain and
conversational completions alike. Scores: see the table in docs/rewards.md."""

from __future__ import annotations

from typing import Any

from cohort.rewards.answers import equal, extract_answer, references_of, text_of
from cohort.types import Text, UserError


def accuracy(completions: list[Text], **columns: Any) -> list[float | None]:
    r"""1 if the answer equals the reference, else 0; None for a row without a reference.

    The answer is the last `<answer>...</answer>`, else the last `\boxed{...}`, else the last number; the reference is
    looked for in the columns answer(s), solution, reference(s), output, response, ground_truth, target. Raises
    UserError where the data has none of these columns.
    """
    if completions and not any(references_of(columns, i) for i in range(len(completions))):
        seen = ", ".join(name for name, values in columns.items() if isinstance(values, list)) or "none"
        raise UserError(f"accuracy needs a reference answer in a column such as `answer`; the data has: {seen}")
    scores: list[float | None] = []
    for i, completion in enumerate(completions):
        references = references_of(columns, i)
        found = extract_answer(text_of(completion))
        right = found is not None and any(equal(found, reference) for reference in references)
        scores.append(float(right) if references else None)
    return scores


def format_reward(completions: list[Text], **_: Any) -> list[float | None]:
    """1 if both `<think>...</think>` and `<answer>...</answer>` are complete, else 0."""
    return [
        float(_complete(text, "<think>", "</think>") and _complete(text, "<answer>", "</answer>"))
        for text in map(text_of, completions)
    ]


def _complete(text: str, opening: str, closing: str) -> bool:
    start = text.find(opening)
    return start >= 0 and text.find(closing, start) >= 0


def tag_presence(completions: list[Text], **_: Any) -> list[float | None]:
    """0.2 for each of <reasoning>, </reasoning>, <answer>, </answer> that is there."""
    tags = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
    return [0.2 * sum(tag in text for tag in tags) for text in map(text_of, completions)]
