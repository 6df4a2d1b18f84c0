"""What a reward matched in a completion, for `cohort reward try`: the text it read and what it compared that with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cohort.rewards.answers.extract import (
    accepted,
    answer_part,
    extract_answer,
    last_boxed,
    last_tagged,
    reference_from,
)
from cohort.rewards.functions import facts
from cohort.rewards.functions.text import words

TAGS = ("<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>", "</answer>")


class Matched(NamedTuple):
    """Matched("18", "18"): the text found in the completion, and the reference it was compared with."""

    found: str | None
    reference: str | None = None


Explain = Callable[[str, Mapping[str, Any]], Matched]
"""(the completion's text, the columns of its row) -> what the reward matched."""


def answer(text: str, row: Mapping[str, Any]) -> Matched:
    """The final answer: tagged, boxed, or the last number."""
    return Matched(extract_answer(text), _reference(row))


def tagged_answer(text: str, row: Mapping[str, Any]) -> Matched:
    """The content of the last `<answer>…</answer>`."""
    content = last_tagged(answer_part(text), "answer")
    return Matched(None if content is None else content.strip(), _reference(row))


def boxed_answer(text: str, row: Mapping[str, Any]) -> Matched:
    """The content of the last `\\boxed{…}` inside the last `<answer>…</answer>`."""
    return Matched(last_boxed(last_tagged(answer_part(text), "answer") or ""), _reference(row))


def tags(text: str, row: Mapping[str, Any]) -> Matched:
    """The tags in the text, with their counts: `<think> </think> <answer> x2`."""
    counts = {tag: text.count(tag) for tag in TAGS}
    return Matched(" ".join(f"{tag}{f' x{n}' if n > 1 else ''}" for tag, n in counts.items() if n) or None)


def reasoning(text: str, row: Mapping[str, Any]) -> Matched:
    """The content of the last `<reasoning>…</reasoning>`."""
    return Matched(last_tagged(text, "reasoning"))


def word_count(text: str, row: Mapping[str, Any]) -> Matched:
    """The number of words: `12 words`."""
    return Matched(f"{len(words(text))} words")


def gym_answer(text: str, row: Mapping[str, Any]) -> Matched:
    """The answer that Reasoning Gym's verifier gets, and the entry's own answer."""
    text = answer_part(text)
    content = last_tagged(text, "answer")
    content = last_boxed(text) if content is None else content
    entry = json.loads(row.get("reasoning_gym_entry") or "{}")
    return Matched((text if content is None else content).strip(), str(entry.get("answer")))


def _reference(row: Mapping[str, Any]) -> str | None:
    return " or ".join(names_of(row)) or None


def names_of(row: Mapping[str, Any]) -> list[str]:
    """The accepted answers of a row; of a mapping, which only `facts` reads, the names in it."""
    reference = reference_from({name: [value] for name, value in row.items()}, 0)
    return list(facts._names(reference)) if isinstance(reference, Mapping) else accepted(reference)
