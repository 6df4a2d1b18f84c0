"""Rewards that read nothing but text: scores are exact, patterns are found by scanning, not backtracking.

Each has TRL's signature and takes completions as strings or as chat messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from cohort.rewards.answers import (
    LONGEST,
    REFERENCE_COLUMNS,
    accepted,
    equal,
    extract_answer,
    last_boxed,
    last_tagged,
    reference_from,
)
from cohort.rewards.quantities import number_word
from cohort.types import Text, UserError

RewardFunction = Callable[..., "list[float | None]"]

CALL_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What reward functions are given beside the dataset's columns."""

# Chinese and Japanese are written without spaces: every character counts as a word there.
_WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    "|[^\\s\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]+"
)
_NUMERAL = re.compile(r"(?:(?<![\w)\]}])-)?\d[\d,]*(?:\.\d+)?(?:/\d[\d,]*)?")
_LETTERS = "ABCD"
_ONE_LETTER = re.compile(r"(?<![^\W_])[A-D](?![^\W_])")
_STRICT_ENDS = tuple(f"\n</reasoning>\n<answer>\n\\boxed{{{letter}}}\n</answer>" for letter in _LETTERS)


def content(completion: Text) -> str:
    """A completion's text: itself, or its first message's content, where parts of type text are joined."""
    if isinstance(completion, str):
        return completion
    body = completion[0].get("content") if completion else None
    if isinstance(body, list):
        return "".join(part.get("text") or "" for part in body if part.get("type", "text") == "text")
    return body or ""


def accuracy(completions: Sequence[Text], **columns: Any) -> list[float | None]:
    """1 where the final answer equals the row's reference mathematically, else 0; None without one."""
    return [
        _any(answers, lambda answer, text=text: equal(extract_answer(text) or "", answer))
        for text, answers in _with_references("accuracy", completions, columns)
    ]


def format_reward(completions: Sequence[Text], **_: Any) -> list[float]:
    """1 where both `<think>…</think>` and `<answer>…</answer>` are complete, else 0."""
    return [float(all(_complete(text, tag) for tag in ("think", "answer"))) for text in map(content, completions)]


def correctness(completions: Sequence[Text], **columns: Any) -> list[float | None]:
    """2.0 where the last `<answer>` is the reference's string; 1.5 where each holds one number, the same."""
    return [
        max((_correctness(last_tagged(text, "answer") or "", answer) for answer in answers), default=None)
        for text, answers in _with_references("correctness", completions, columns)
    ]


def tag_presence(completions: Sequence[Text], **_: Any) -> list[float]:
    """0.2 for each of `<reasoning>`, `</reasoning>`, `<answer>`, `</answer>` that is present."""
    tags = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
    return [sum(tag in text for tag in tags) / 5 for text in map(content, completions)]


def choice_accuracy(completions: Sequence[Text], **columns: Any) -> list[float | None]:
    """2.0 where the last `<answer>` holds `\\boxed{A}` to `\\boxed{D}`, the row's letter; else 0."""
    return [
        _any(answers, lambda letter, text=text: _chosen(text) == letter.strip(" ().").upper(), score=2.0)
        for text, answers in _with_references("choice_accuracy", completions, columns)
    ]


def strict_format(completions: Sequence[Text], **_: Any) -> list[float]:
    """1.0 for exactly `<reasoning>\\n…\\n</reasoning>\\n<answer>\\n\\boxed{X}\\n</answer>`, X one of A-D."""
    start = "<reasoning>\n"
    shortest = len(start) + len(_STRICT_ENDS[0])
    texts = [content(completion).strip() for completion in completions]
    return [float(t.startswith(start) and t.endswith(_STRICT_ENDS) and len(t) >= shortest) for t in texts]


def soft_format(completions: Sequence[Text], **_: Any) -> list[float]:
    """0.5 where `<reasoning>…</reasoning>` is followed by an `<answer>` that holds a letter A-D by itself."""
    return [0.5 * _soft(content(completion)) for completion in completions]


def xml_count(completions: Sequence[Text], **_: Any) -> list[float]:
    """0.125 for each tag that stands once on its own line, less 0.001 per character after the answer."""
    return [_xml_count(content(completion)) for completion in completions]


def reasoning_length(completions: Sequence[Text], **_: Any) -> list[float]:
    """By the words inside `<reasoning>`: under 20: 0; under 50: 0.25; under 100: 0.5; else 0.75."""
    counts = [len(words(last_tagged(content(completion), "reasoning") or "")) for completion in completions]
    return [0.25 * sum(count >= bound for bound in (20, 50, 100)) for count in counts]


def keyword_reward(keywords: Sequence[str]) -> RewardFunction:
    """A function that pays 0.1 for each keyword that is a word, or plural, of the reasoning; at most 0.5."""
    patterns = [_keyword(keyword) for keyword in keywords]

    def reasoning_keywords(completions: Sequence[Text], **_: Any) -> list[float]:
        texts = [last_tagged(content(completion), "reasoning") or "" for completion in completions]
        return [min(sum(bool(pattern.search(text)) for pattern in patterns), 5) / 10 for text in texts]

    return reasoning_keywords


def too_short_penalty(least: int = 10, penalty: float = -0.3) -> RewardFunction:
    """A function that gives the penalty to completions of fewer than `least` words."""

    def too_short(completions: Sequence[Text], **_: Any) -> list[float]:
        return [penalty if len(words(content(c))) < least else 0.0 for c in completions]

    return too_short


def repetition_penalty(size: int = 4, share: float = 0.2, penalty: float = -0.5) -> RewardFunction:
    """A function that gives the penalty where over `share` of the n-grams of `size` words are repeats."""

    def repetition(completions: Sequence[Text], **_: Any) -> list[float]:
        return [penalty if _repeated(words(content(c)), size) > share else 0.0 for c in completions]

    return repetition


def overlong_penalty(max_length: int = 1024, cache: int | None = None) -> RewardFunction:
    """A function that gives DAPO's soft overlong penalty (arXiv 2503.14476, Eq. 13), by tokens.

    0 up to max_length - cache, then (max_length - cache - n) / cache, and -1 beyond max_length. The cache is
    a fifth of max_length by default, as in the paper's 4096 of 20480.
    """
    slope = max(1, max_length // 5) if cache is None else cache
    if not 0 < slope <= max_length:
        raise UserError(f"overlong: cache is {slope}; it must lie between 1 and max_length, {max_length}")
    free = max_length - slope

    def overlong(completions: Sequence[Text], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        return [min(0.0, max(-1.0, (free - len(ids)) / slope)) for ids in completion_ids]

    return overlong


def words(text: str) -> list[str]:
    """Words between spaces; each character where a script has no spaces."""
    return _WORD.findall(text)


def _with_references(name: str, completions: Sequence[Text], columns: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each completion's text with the answers that its row accepts, none where the row has no reference."""
    if not any(column in columns for column in REFERENCE_COLUMNS):
        present = [column for column in columns if column not in CALL_ARGUMENTS]
        raise UserError(
            f"{name} compares with a reference answer, and the rows have no column for one. It may be named "
            f"{', '.join(REFERENCE_COLUMNS)}; the columns are: {', '.join(present) or 'none'}"
        )
    return [(content(c), accepted(reference_from(columns, i))) for i, c in enumerate(completions)]


def _any(answers: list[str], fits: Callable[[str], bool], score: float = 1.0) -> float | None:
    return (score if any(map(fits, answers)) else 0.0) if answers else None


def _complete(text: str, tag: str) -> bool:
    start = text.find(f"<{tag}>")
    return start >= 0 and text.rfind(f"</{tag}>") > start


def _correctness(found: str, reference: str) -> float:
    found, reference = found.strip(), reference.strip()
    if not found or found == "...":
        return 0.0
    if found == reference:
        return 2.0
    if max(len(found), len(reference)) > LONGEST:
        return 0.0
    numbers = _NUMERAL.findall(found), _NUMERAL.findall(reference)
    if any(len(each) != 1 for each in numbers):
        return 0.0
    a, b = (number_word(each[0].rstrip(",")) for each in numbers)
    return 1.5 if a is not None and a == b else 0.0


def _chosen(text: str) -> str:
    letter = (last_boxed(last_tagged(text, "answer") or "") or "").strip()
    return letter if letter in tuple(_LETTERS) else "none"


def _soft(text: str) -> bool:
    answer = last_tagged(text, "answer")
    if answer is None or not _ONE_LETTER.search(answer):
        return False
    before = text[: text.rfind("<answer>", 0, text.rfind("</answer>"))].rstrip()
    return before.endswith("</reasoning>") and "<reasoning>" in before


def _xml_count(text: str) -> float:
    score = 0.125 * sum(text.count(tag) == 1 for tag in ("<reasoning>\n", "\n</reasoning>\n", "\n</answer>"))
    _, closed, after = text.rpartition("</answer>")
    beyond = max(0, len(after) - 1) if closed else 0
    return max(0.0, round(score - 0.001 * beyond, 3))


def _keyword(keyword: str) -> re.Pattern[str]:
    # Only letters of the keyword's own alphabet bound it: `row` is no part of `grow`, 行 is a word anywhere.
    before = "(?<![a-z])" if keyword[:1].isascii() else ""
    after = "(?:s|es)?(?![a-z])" if keyword[-1:].isascii() else ""
    return re.compile(before + re.escape(keyword) + after, re.IGNORECASE)


def _repeated(tokens: list[str], size: int) -> float:
    """Share of the n-grams that occurred before."""
    total = len(tokens) - size + 1
    if total < 2:
        return 0.0
    return 1 - len(set(zip(*(tokens[i : i + total] for i in range(size)), strict=True))) / total


reasoning_keywords = keyword_reward(("row", "column", "sum", "unique", "digit", "no repeat", "clue"))
too_short = too_short_penalty()
repetition = repetition_penalty()
overlong = overlong_penalty()
