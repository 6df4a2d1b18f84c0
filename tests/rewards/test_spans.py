"""Which characters of a completion a reward read."""

from __future__ import annotations

from typing import Any

import pytest

from cohort.rewards.compose import Rewards
from cohort.rewards.functions.table import TABLE
from cohort.rewards.spans import span_of, spans
from cohort.types import UserError


@pytest.mark.parametrize(
    ("reward", "text", "read", "start"),
    [
        ("accuracy", "The answer is 5. (see 25)", "5", 14),
        ("accuracy", "12 = 12 so 12", "12", 11),
        ("accuracy", "<answer> 42 </answer> and 42", "42", 9),
        ("accuracy", r"2 so \boxed{\frac{3}{4}}.", r"\frac{3}{4}", 12),
        ("accuracy", "<think>6</think> it is 5 or -6", "-6", 28),
        ("accuracy", "x = 1,000.", "1,000", 4),
        ("correctness", "B or <answer>B</answer> B", "B", 13),
        ("choice_accuracy", r"\boxed{A} <answer>\boxed{C}</answer>", "C", 25),
        ("reasoning_length", "abc <reasoning>abc abc</reasoning>", "abc abc", 15),
    ],
)
def test_built_in_rewards_say_what_they_read(reward: str, text: str, read: str, start: int) -> None:
    explain = TABLE[reward].explain
    assert explain is not None
    assert span_of(explain, text) == (start, start + len(read))
    assert text[start : start + len(read)] == read


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        ("accuracy", "no number"),
        ("accuracy", ""),
        ("accuracy", "<think>5"),
        ("too_short", "I wrote 4 words"),  # what it finds is the number of words, which these are not
        ("format", "<think> a </think> <answer>b</answer>"),  # it read several places
    ],
)
def test_no_span_where_nothing_single_was_read(reward: str, text: str) -> None:
    explain = TABLE[reward].explain
    assert explain is not None and span_of(explain, text) is None


def first_word(completions: list[Any], log_extra: Any, **_: Any) -> list[float]:
    ends = [text.find(" ") for text in completions]
    log_extra("span", [[0, end] if end > 0 else None for end in ends])
    return [float(end > 0) for end in ends]


def last_word(completions: list[Any], log_extra: Any, **_: Any) -> list[float]:
    log_extra("span", [[text.rfind(" ") + 1, len(text)] for text in completions])
    return [1.0 for _ in completions]


def test_functions_of_the_user_log_their_spans() -> None:
    rewards = Rewards([first_word, last_word, "accuracy"])
    texts = ["two 2 three", "3"]
    scores = rewards(["?", "?"], texts, [[1], [1]], {"answer": ["2", "3"]})
    read = [spans(rewards.parts, text, {k: v[i] for k, v in scores.extra.items()}) for i, text in enumerate(texts)]
    assert read == [
        {"first_word": (0, 3), "last_word": (6, 11), "accuracy": (4, 5)},
        {"last_word": (0, 1), "accuracy": (0, 1)},
    ]


@pytest.mark.parametrize("span", [[3, 1], [0.0, 2.0], [1], "ab", [-1, 2], 4])
def test_a_span_that_is_none_is_refused(span: Any) -> None:
    def wrong(completions: list[Any], log_extra: Any, **_: Any) -> list[float]:
        log_extra("span", [span])
        return [1.0]

    with pytest.raises(UserError, match=r"'wrong' gave log_extra the span .*: give \[start, end\]"):
        Rewards([wrong])(["?"], ["text"], [[1]], {})
