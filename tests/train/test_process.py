"""Steps of reasoning: cutting, scoring, checking lines of working, and finding steps among token ids."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from cohort.data import chains, columns
from cohort.rewards.compose import Rewards
from cohort.rewards.functions.working import chain_steps, column_steps
from cohort.rewards.steps import by_pattern, by_separator, cut, make_split
from cohort.types import UserError

LINES = by_separator("\n")
TAGS = by_pattern("\n|</think>")


def message(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def test_steps_end_behind_their_separator_and_white_space_is_no_step() -> None:
    found = cut("\na = 1\n\nb = 2\nso 3", LINES)
    assert found.texts == ["a = 1", "b = 2", "so 3"]
    assert found.ends == [8, 14, 18]
    assert cut("", LINES) == cut("", TAGS)
    assert cut("", LINES).texts == [""] and cut("", LINES).ends == [0]
    assert cut("\n\n", LINES).ends == [2]
    assert cut("one\n", LINES).texts == ["one"] and cut("one\n", LINES).ends == [4]


def test_patterns_and_functions_cut_too() -> None:
    split = make_split("\n", r"(?i)step \d+: ", None)
    assert cut("Intro step 1: é STEP 2: 😀", split).texts == ["Intro step 1:", "é STEP 2:", "😀"]
    assert cut("é😀|b", make_split("\n", r"\|", None)).ends == [3, 4]
    assert cut("abcd", make_split("\n", "x", lambda text: [text[:1], text[1:]])).texts == ["a", "bcd"]
    with pytest.raises(UserError, match="pieces that join to it"):
        cut("a b", make_split("\n", None, str.split))
    with pytest.raises(UserError, match=r"no look-around.*invalid perl operator"):
        by_pattern("(?=a)")
    with pytest.raises(UserError, match="step_separator is empty"):
        by_separator("")


@pytest.mark.parametrize("pattern", [r"(\n+)+x", r"\s*\s*\s*\n\d", r"(a|a)*b"])
def test_a_pattern_takes_time_in_proportion_to_the_text(pattern: str) -> None:
    started = time.perf_counter()
    for text in ("\n" * 20_000, "a" * 20_000, " " * 20_000):
        cut(text, by_pattern(pattern))
    assert time.perf_counter() - started < 5


CHAIN = "7+5-8="
GOOD = "<think>7+5=2\n2-8=4</think><answer>4</answer>"


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        (GOOD, [1, 1]),
        ("<think>7+5=3\n3-8=5</think><answer>5</answer>", [0, 1]),  # carried on, and counted once
        ("<think>7+5=3\n2-8=4</think><answer>4</answer>", [0, 0]),  # the right answer from nowhere
        ("<think>7+5=2\n2-8=4</think><answer>7</answer>", [1, 0]),
        ("<think>7+5=2\n2-8=4", [1, 0]),  # it should have come to an answer
        ("<think>7+5=2</think><answer>2</answer>", [0]),
        ("<answer>4</answer>", [0]),
        ("<think>7+5=2\n2-8=4\n4+1=5</think><answer>4</answer>", [1, 1, 0]),
        ("<think>7+5=2\n2-8=4</think><answer>4</answer>4", [1, 0]),
        ("<think>5+7=2\n2-8=4</think><answer>4</answer>", [0, 0]),
        (GOOD.replace("\n", "</think><answer>2</answer>\n"), [0, 0]),
        ("", [0]),
    ],
)
def test_lines_of_a_chain(text: str, scores: list[float]) -> None:
    assert chain_steps([CHAIN], [cut(text, LINES).texts]) == [scores]


def test_the_answer_may_be_a_step_of_its_own() -> None:
    assert chain_steps([message(CHAIN)], [cut(GOOD, TAGS).texts]) == [[1, 1, 1]]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_chains_steps_are_all_right_exactly_where_the_teacher_was(k: int) -> None:
    """Right by chance at the end, after two errors that cancel, is not right at each line."""
    teacher = chains.Teacher(3, mistaught=0.5)
    demonstrations, _, _ = chains.make_chains(k, 30, 0, 3, teacher)
    seen = set()
    for row in demonstrations:
        question, text = row["prompt"][0]["content"], row["completion"][0]["content"]
        (scores,) = chain_steps([row["prompt"]], [cut(text, LINES).texts])
        problem = tuple(int(d) for d in question[:-1:2]), question[1:-1:2]
        lines = text.removeprefix("<think>").split("</think>")[0].split("\n")
        facts = [chains.step(int(line[0]), line[1], int(line[2])) == int(line[4]) for line in lines]
        assert scores == [float(fact) for fact in facts] and len(scores) == k
        seen.add(all(facts))
        by_the_book = chains.worked(problem)
        assert all(chain_steps([question], [cut(by_the_book, LINES).texts])[0])
    assert seen == {True, False} or k == 1


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("<think>7+5+0=12\n4+8+1=13</think><answer>132</answer>", [1, 1]),
        ("<think>7+5+0=12\n4+8+0=12</think><answer>122</answer>", [1, 0]),  # forgot to carry
        ("<think>7+5+0=11\n4+8+1=13</think><answer>131</answer>", [0, 1]),
        ("<think>7+5+0=12\n4+8+1=13</think><answer>133</answer>", [1, 0]),
        ("<think>7+5+0=12\n8+4+1=13</think><answer>132</answer>", [1, 0]),
        ("<answer>132</answer>", [0]),
    ],
)
def test_lines_of_a_column_addition(text: str, scores: list[float]) -> None:
    assert column_steps(["47+85="], [cut(text, LINES).texts]) == [scores]


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_columns_are_taught_with_forgotten_carries(digits: int) -> None:
    demonstrations, train, held_out = columns.make_columns(digits, 30, 10, seed=1)
    questions = [row["prompt"][0]["content"] for row in (*demonstrations, *train, *held_out)]
    assert len(set(questions)) == 70 and (len(demonstrations), len(train), len(held_out)) == (30, 30, 10)
    assert all(eval_sum(q) == int(row["answer"]) for q, row in zip(questions[30:], (*train, *held_out), strict=True))
    wrong = 0
    for question, row in zip(questions, demonstrations, strict=False):
        a, b = map(int, question[:-1].split("+"))
        book = columns.worked((a, b))
        assert all(column_steps([question], [cut(book, LINES).texts])[0])
        assert book.endswith(f"<answer>{a + b}</answer>")
        taught = row["completion"][0]["content"]
        right = taught.endswith(f"<answer>{a + b}</answer>")
        assert all(column_steps([row["prompt"]], [cut(taught, LINES).texts])[0]) == right
        wrong += not right
    assert wrong == 0 if digits == 1 else wrong >= 2
    with pytest.raises(ValueError, match="only 100 different sums"):
        columns.make_columns(1, 50, 1, seed=0)


def eval_sum(question: str) -> int:
    return sum(map(int, question[:-1].split("+")))


def test_questions_of_another_kind_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"chain_steps judges questions such as 7\+5-8=.*'What is 2\?'"):
        chain_steps(["What is 2?"], [["2"]])
    with pytest.raises(ValueError, match="column_steps judges"):
        column_steps([CHAIN], [["2"]])


def test_hostile_lines_are_judged_in_no_time() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices("0123456789+-=<think>/answer\n", k=20_000)) for _ in range(3)] + ["9" * 50_000]
    started = time.perf_counter()
    for text in texts:
        assert sum(chain_steps([CHAIN], [cut(text, LINES).texts])[0]) == 0
        assert sum(column_steps(["47+85="], [cut(text, LINES).texts])[0]) == 0
    assert time.perf_counter() - started < 2


def scores_of(funcs: list[Any], texts: list[str], weights: list[float] | None = None, **columns: Any) -> Any:
    rewards = Rewards(funcs, weights, split=LINES)
    return rewards([CHAIN] * len(texts), texts, [[0]] * len(texts), {k: [v] * len(texts) for k, v in columns.items()})


def test_step_rewards_are_summed_by_weight_and_outcomes_stand_beside() -> None:
    def digits(steps: list[list[str]], **_: Any) -> list[list[float]]:
        return [[sum(c.isdigit() for c in step) for step in texts] for texts in steps]

    found = scores_of(["chain_steps", digits, "accuracy"], [GOOD, "a\nb1"], [2.0, 0.5, 3.0], answer="4")
    assert found.step_rewards == [[2 + 1.5, 2 + 2], [0, 0.5]]
    assert found.step_ends == [[13, len(GOOD)], [2, 4]]
    assert found.components == {"chain_steps": [1.0, 0.0], "digits": [3.5, 0.5], "accuracy": [1.0, 0.0]}
    assert found.totals == [3.0, 0.0]
    assert scores_of(["chain_steps"], [GOOD, "<think>7+5=2\nx"]).totals == [1.0, 0.5]


def test_a_step_without_a_reward_is_left_out_and_moves_no_other() -> None:
    def known(steps: list[list[str]], **_: Any) -> list[list[float | None]]:
        return [[None if text == "?" else float(text) for text in texts] for texts in steps]

    found = scores_of([known], ["1\n?\n3", "?\n2", "4\n?"])
    assert found.step_rewards == [[1, 3], [2], [4]] and found.step_ends == [[2, 5], [3], [2]]
    assert found.components == {"known": [2.0, 2.0, 4.0]}
    both = scores_of([known, lambda steps: [[1.0] * len(texts) for texts in steps]], ["1\n?"], [1.0, 0.5])
    assert both.step_rewards == [[1.5, 0.5]]
    assert scores_of([known, "format"], ["?"]).step_rewards == [[]]
    with pytest.raises(UserError, match=r"no reward applies to the row .*known returned None for it"):
        scores_of([known], ["1", "?\n?"])


def test_bad_step_rewards_are_named() -> None:
    with pytest.raises(UserError, match="none of the rewards accuracy scores steps"):
        Rewards(["accuracy"], split=LINES)
    with pytest.raises(UserError, match=r"'steps'.*Step rewards are for method: grpo_process"):
        Rewards(["chain_steps"])([CHAIN], [GOOD], [[0]], {})
    with pytest.raises(UserError, match="a column `steps`"):
        scores_of(["chain_steps"], [GOOD], steps=["x"])
    with pytest.raises(UserError, match=r"returned 1 lists for 2 completions"):
        scores_of([lambda steps: [[1.0]]], ["a", "b"])
    with pytest.raises(UserError, match=r"completion 0, which has 2 steps"):
        scores_of([lambda steps: [[1.0]]], ["a\nb"])
    with pytest.raises(UserError, match="nan for a step of completion 0"):
        scores_of([lambda steps: [[float("nan")]]], ["a"])
