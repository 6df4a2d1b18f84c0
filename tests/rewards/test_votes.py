"""Votes: the answer that each reward reads, grouped by that reward's own equality."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort.rewards import votes
from cohort.rewards.compose import Rewards
from cohort.rewards.votes import Ballot, ballot_of, candidates, group


def ballot(reward: Any) -> Ballot | None:
    return ballot_of(Rewards([reward]).parts[0])


def partition(reward: Any, texts: list[str], **row: Any) -> list[list[int]]:
    """The samples of each candidate, of those that vote."""
    found = ballot(reward)
    assert found is not None
    (voted,) = candidates(found, [texts], [row])
    return [[i for i, vote in enumerate(voted) if vote == key] for key in dict.fromkeys(voted) if key is not None]


def boxed(*answers: str) -> list[str]:
    return [f"So \\boxed{{{answer}}}." for answer in answers]


@pytest.mark.parametrize(
    ("reward", "texts", "expected"),
    [
        ("accuracy", boxed("(1,2)", "(1, 2)", "\\left(1,2\\right)", "(2,1)"), [[0, 1, 2], [3]]),
        ("accuracy", boxed("0.5", "\\frac12", "\\frac{1}{2}", "1/2", "2"), [[0, 1, 2, 3], [4]]),
        ("accuracy", boxed("x+1", "1 + x", "x-1"), [[0, 1], [2]]),
        ("accuracy", boxed("1,000", "1000.0", "1{,}000", "yes", "Yes", "no"), [[0, 1, 2], [3, 4], [5]]),
        ("accuracy", ["It is 4.", "\\boxed{4.0}", "I do not know.", "<answer>4</answer>"], [[0, 1, 3]]),
        ({"name": "accuracy", "strict": True}, ["It is 4.", "\\boxed{4.0}", "<answer>4</answer>"], [[1, 2]]),
        ("correctness", [f"<answer>{a}</answer>" for a in ("4", "4.0", "4 cats", "5", "", "...")], [[0, 1, 2], [3]]),
        ("choice", ["<answer>B</answer>", "\\boxed{(b)}", "The answer is B.", "C", "A or B", ""], [[0, 1, 2], [3]]),
        ({"name": "choice", "strict": True}, ["<answer>B</answer>", "\\boxed{B}", "The answer is B."], [[0, 1]]),
        ({"name": "choice", "labels": ["yes", "no"]}, ["yes", "\\boxed{Yes}", "no", "maybe"], [[0, 1], [2]]),
        ("choice_accuracy", ["<answer>\\boxed{B}</answer>", "<answer>so \\boxed{B}</answer>", "B"], [[0, 1]]),
        ("facts", ["<answer>The U.S.A.</answer>", "usa", "\\boxed{USA}", "France", ""], [[0, 1, 2], [3]]),
        ({"name": "facts", "strict": True}, ["<answer>USA</answer>", "usa"], [[0]]),
    ],
)  # fmt: skip
def test_votes_are_grouped_by_the_rewards_equality(reward: Any, texts: list[str], expected: list[list[int]]) -> None:
    assert partition(reward, texts) == expected


def test_a_choice_is_voted_on_by_label_whatever_was_written() -> None:
    texts = ["B", "<answer>Rome</answer>", "\\boxed{B. Rome}", "Paris"]
    assert partition("choice", texts, choices=["Paris", "Rome"], answer="B") == [[0, 1, 2], [3]]
    assert partition("choice", texts, options={"A": "Paris", "B": "Rome"}, answer="B") == [[0, 1, 2], [3]]


def test_gym_answers_vote_by_spelling_and_rows_of_other_data_do_not() -> None:
    entry = '{"answer": "a b"}'
    texts = ["<answer>A  b</answer>", "a b", "\\boxed{ab}"]
    assert partition("reasoning_gym", texts, reasoning_gym_task="t", reasoning_gym_entry=entry) == [[0, 1], [2]]
    assert partition("reasoning_gym", texts) == []


def test_without_an_answer_there_is_no_vote() -> None:
    def mine(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    for reward in ("format", "soft_format", "repetition", mine):
        assert ballot(reward) is None
    mine.vote = lambda text, row: text[:1] or None  # type: ignore[attr-defined]
    assert partition(mine, ["apple", "axe", "", "bee"]) == [[0, 1], [3]]


def test_programs_have_no_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohort.rewards.functions.code.UnitTests.start", lambda self: None)
    assert ballot("unit_tests") is None


def test_few_pairs_are_compared_as_formulas(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[str, str]] = []
    counted = Ballot(lambda text, row: text, equal=lambda a, b: bool(asked.append((a, b))))
    texts = [f"x+{i}" for i in range(64)]
    with caplog.at_level(logging.WARNING, "cohort"):
        candidates(counted, [texts], [{}])
    assert len(asked) == votes.MOST_FORMULAS
    assert "1 of 1 problems have more than 100 pairs of formulas" in caplog.text
    asked.clear()
    candidates(counted, [[str(i) for i in range(20)]], [{}])
    assert len(asked) == 20 * 19 // 2, "numbers are compared without a bound"


ANSWERS = [
    "0.5",
    "1/2",
    "50%",
    "50",
    "\\frac12",
    "x",
    "X",
    "x+1",
    "1+x",
    "(1,2)",
    "(1, 2)",
    "2,1",
    "cat",
    "",
    "\\",
    "{",
    None,
]


def check_order_does_not_matter(answers: list[str | None], seed: int) -> None:
    accuracy = ballot("accuracy")
    assert accuracy is not None
    once, _ = group(answers, accuracy)
    order = list(range(len(answers)))
    random.Random(seed).shuffle(order)
    again, _ = group([answers[i] for i in order], accuracy)
    assert [once[i] for i in order] == again
    assert [vote is None for vote in once] == [answer is None for answer in answers]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(ANSWERS) | st.text("0123456789.x+-/ ", max_size=6), max_size=8), st.integers(0, 9))
def test_the_order_of_the_samples_does_not_matter(answers: list[str | None], seed: int) -> None:
    check_order_does_not_matter(answers, seed)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(st.lists(st.sampled_from(ANSWERS) | st.text(max_size=6), max_size=8), st.integers(0, 9))
def test_the_order_of_many_samples_does_not_matter(answers: list[str | None], seed: int) -> None:
    check_order_does_not_matter(answers, seed)
