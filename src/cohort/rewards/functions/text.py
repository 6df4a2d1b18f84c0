"""Rewards for right answers, reasoning, length and repetition. The searches take linear time.

Each function has TRL's signature and takes completions as strings or as chat messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from cohort.rewards.answers.extract import (
    LONGEST,
    REFERENCE_COLUMNS,
    TO_ASCII,
    accepted,
    answer_part,
    equal,
    extract_answer,
    last_tagged,
    marked_answer,
    reference_from,
)
from cohort.rewards.answers.notations import without_repeats
from cohort.rewards.answers.quantities import number_word
from cohort.texts import OPENED, opened_thoughts
from cohort.types import Text, UserError

RewardFunction = Callable[..., "Sequence[float | None]"]

CALL_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""The arguments of reward functions other than the dataset's columns."""

KEYWORDS = ("row", "column", "sum", "unique", "digit", "no repeat", "clue")

# Chinese and Japanese have no spaces between words: every character counts as a word.
_WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    "|[^\\s\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]+"
)
_NUMERAL = re.compile(
    r"(?:(?<![\w)\]}])-\\?\$?)?(?:\\[dt]?frac\{\d+\}\{\d+\}"
    r"|(?:\d[\d,]*(?:\.\d+)?|(?<!\w)\.\d+)(?:[eE][+-]?\d{1,3}\b)?(?:/\d[\d,]*)?)"
)


def content(completion: Text) -> str:
    """The text of a completion: the string, or the first message's content, whose parts of type text are joined."""
    if isinstance(completion, str):
        return completion
    body = completion[0].get("content") if completion else None
    if isinstance(body, list):
        return "".join(part.get("text") or "" for part in body if part.get("type", "text") == "text")
    return body or ""


def of_text(name: str, score: Callable[[str], float]) -> RewardFunction:
    """A reward function from a score of a text. Equal texts of a batch are scored once."""

    def reward(completions: Sequence[Text], **_: Any) -> list[float]:
        of = cache(score)
        return [of(content(completion)) for completion in completions]

    return _named(name, score.__doc__, reward)


def of_whole_text(name: str, score: Callable[[str], float]) -> RewardFunction:
    """As `of_text`; a completion whose prompt has opened the thoughts is scored with the opening mark before it."""

    def reward(completions: Sequence[Text], **columns: Any) -> list[float]:
        of, marks = cache(score), opened_marks(len(completions), columns)
        texts = map(content, completions)
        return [
            of(text if mark is None or text.lstrip().startswith(mark) else mark + text)
            for text, mark in zip(texts, marks, strict=True)
        ]

    return _named(name, score.__doc__, reward)


def of_answer(name: str, score: Callable[[str, str], float]) -> RewardFunction:
    """A reward function from a score of (text, reference answer). Equal pairs of a batch are scored once.

    With several accepted answers the highest score counts; None for rows without a reference.
    """

    def reward(completions: Sequence[Text], **columns: Any) -> list[float | None]:
        of, rows = cache(score), with_references(name, completions, columns)
        return [max((of(text, answer) for answer in accepted(value)), default=None) for text, value in rows]

    return _named(name, score.__doc__, reward)


def _named(name: str, doc: str | None, function: RewardFunction) -> RewardFunction:
    function.__name__ = name
    function.__doc__ = doc
    return function


def make_accuracy(strict: bool = False) -> RewardFunction:
    """1 for the right final answer; strict: only if it is tagged or boxed."""
    return of_answer("accuracy", _accurate_and_marked if strict else _accurate)


def make_correctness(strict: bool = False) -> RewardFunction:
    """2.0 for the reference's exact text, 1.5 for its number; strict: 1.5 only if the whole answer is equal."""
    return of_answer("correctness", _equal_in_tags if strict else _correctness)


def make_reasoning_length(strict: bool = False) -> RewardFunction:
    """0 to 0.75 by the number of words inside `<reasoning>`; strict: of distinct words."""
    return of_text("reasoning_length", _different_words if strict else _reasoning_words)


def keyword_reward(keywords: Sequence[str] = KEYWORDS, strict: bool = False) -> RewardFunction:
    """0.1 for each keyword in the reasoning (or its plural), at most 0.5; strict: at most one for each 10 words."""
    patterns = [_keyword(keyword) for keyword in keywords]

    def score(text: str) -> float:
        reasoning = last_tagged(text, "reasoning") or ""
        count = sum(bool(pattern.search(reasoning)) for pattern in patterns)
        return min(count, 5, len(words(reasoning)) // 10 if strict else 5) / 10

    return of_text("reasoning_keywords", score)


def too_short_penalty(least: int = 10, penalty: float = -0.3) -> RewardFunction:
    """A reward: `penalty` for completions of fewer than `least` words, else 0."""

    def too_short(completions: Sequence[Text], **_: Any) -> list[float]:
        return [penalty if len(words(content(c))) < least else 0.0 for c in completions]

    return too_short


def repetition_penalty(size: int = 4, share: float = 0.2, penalty: float = -0.5) -> RewardFunction:
    """A reward: `penalty` if more than `share` of the n-grams of `size` words are repeats, else 0."""

    def repetition(completions: Sequence[Text], **_: Any) -> list[float]:
        return [penalty if _repeated(words(content(c)), size) > share else 0.0 for c in completions]

    return repetition


def overlong_penalty(max_length: int = 1024, cache: int | None = None) -> RewardFunction:
    """DAPO's soft overlong penalty (arXiv 2503.14476, Eq. 13) for completions of n tokens.

    0 up to max_length - cache, then (max_length - cache - n) / cache, and -1 beyond max_length. The default cache is
    a fifth of max_length, as in the paper (4096 of 20480).
    """
    slope = max(1, max_length // 5) if cache is None else cache
    if not 0 < slope <= max_length:
        raise UserError(f"overlong: cache is {slope}; it must lie between 1 and max_length, {max_length}")
    free = max_length - slope

    def overlong(completions: Sequence[Text], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        return [min(0.0, max(-1.0, (free - len(ids)) / slope)) for ids in completion_ids]

    return overlong


def words(text: str) -> list[str]:
    """The words of a text, separated by white space; in Chinese and Japanese, each character."""
    return _WORD.findall(text)


def with_references(name: str, completions: Sequence[Text], columns: dict[str, Any]) -> list[tuple[str, Any]]:
    """(text after any thoughts, reference or None) of each completion.

    Raises UserError if the rows have no reference column.
    """
    if not any(column in columns for column in REFERENCE_COLUMNS):
        present = [column for column in columns if column not in (*CALL_ARGUMENTS, OPENED)]
        raise UserError(
            f"{name} compares with a reference answer, and the rows have no column for one. It may be named "
            f"{', '.join(REFERENCE_COLUMNS)}; the columns are: {', '.join(present) or 'none'}"
        )
    rows = zip(completions, opened_marks(len(completions), columns), strict=True)
    texts = [answer_part(content(text), opened=mark is not None) for text, mark in rows]
    return [(text, reference_from(columns, i)) for i, text in enumerate(texts)]


def opened_marks(count: int, columns: dict[str, Any]) -> list[str | None]:
    """The mark by which each completion's prompt, or its chat template, has opened the thoughts; None where it has
    not."""
    rendered = columns.get(OPENED) or [None] * count
    prompts = columns.get("prompts") or [""] * count
    return [mark or opened_thoughts(_end_of(prompt)) for mark, prompt in zip(rendered, prompts, strict=True)]


def _end_of(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else content(prompt[-1:])


def _accurate(text: str, answer: str) -> float:
    """1 if the final answer equals the row's reference mathematically, else 0; None for rows without one."""
    return float(equal(extract_answer(text) or "", answer))


def _accurate_and_marked(text: str, answer: str) -> float:
    return float(equal(marked_answer(text) or "", answer))


def _correctness(text: str, reference: str) -> float:
    """2.0 if the last `<answer>` is the reference's text; 1.5 if both contain one number and the numbers are equal."""
    answer, reference = (last_tagged(text, "answer") or "").strip(), reference.strip()
    if not answer or answer == "...":
        return 0.0
    if answer == reference:
        return 2.0
    if max(len(answer), len(reference)) > LONGEST:
        return 0.0
    numbers = [_NUMERAL.findall(without_repeats(text.translate(TO_ASCII))) for text in (answer, reference)]
    if any(len(each) != 1 for each in numbers):
        return 0.0
    a, b = (number_word(each[0].rstrip(",").replace("\\$", "").replace("$", "")) for each in numbers)
    return 1.5 if a is not None and a == b else 0.0


def _equal_in_tags(text: str, reference: str) -> float:
    score = _correctness(text, reference)
    return score if score != 1.5 or equal(last_tagged(text, "answer") or "", reference) else 0.0


def _reasoning_words(text: str) -> float:
    """By the number of words inside `<reasoning>`: under 20: 0; under 50: 0.25; under 100: 0.5; else 0.75."""
    return _stepped(len(words(last_tagged(text, "reasoning") or "")))


def _different_words(text: str) -> float:
    return _stepped(len(set(words((last_tagged(text, "reasoning") or "").casefold()))))


def _stepped(count: int) -> float:
    return 0.25 * sum(count >= bound for bound in (20, 50, 100))


def _keyword(keyword: str) -> re.Pattern[str]:
    # A keyword in Latin letters must be a whole word (`row` does not match in `grow`); 行 matches anywhere.
    before = "(?<![a-z])" if keyword[:1].isascii() else ""
    after = "(?:s|es)?(?![a-z])" if keyword[-1:].isascii() else ""
    return re.compile(before + re.escape(keyword) + after, re.IGNORECASE)


def _repeated(tokens: list[str], size: int) -> float:
    """The fraction of n-grams that are repeats of earlier ones."""
    total = len(tokens) - size + 1
    if total < 2:
        return 0.0
    return 1 - len(set(zip(*(tokens[i : i + total] for i in range(size)), strict=True))) / total


accuracy = make_accuracy()
correctness = make_correctness()
reasoning_length = make_reasoning_length()
reasoning_keywords = keyword_reward()
too_short = too_short_penalty()
repetition = repetition_penalty()
overlong = overlong_penalty()
