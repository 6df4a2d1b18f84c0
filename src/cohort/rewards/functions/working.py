"""Step rewards that judge each line of working: chains of one-digit operations, and column addition.

A step scores 1.0 if it follows from the line before it, else 0.0. An error is counted in the line that makes it, not
in later lines that use its result. All steps score 1.0 if and only if the working is complete and right and ends with
the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from cohort.rewards.functions.text import content
from cohort.types import Text

STEP = re.compile(r"(?:<think>)?(?P<line>[0-9+\-=]{1,100})?(?:</think>)?(?:<answer>(?P<answer>[0-9]{1,100})</answer>)?")
"""A line of working, the answer, or both, with their tags and nothing else."""
CHAIN = re.compile(r"[0-9](?:[+-][0-9])+=")
CHAIN_LINE = re.compile(r"([0-9])([+-])([0-9])=([0-9])")
SUM = re.compile(r"([0-9]{1,100})\+([0-9]{1,100})=")
SUM_LINE = re.compile(r"([0-9])\+([0-9])\+([01])=(1?[0-9])")

Judge = Callable[[str | None, str | None], bool]
"""(line of working or None, answer or None) of one step -> whether the step follows from the steps before it."""


def chain_steps(prompts: Sequence[Text], steps: Sequence[Sequence[str]], **_: Any) -> list[list[float]]:
    """Working of `7+5-8=`: the lines `7+5=2` and `2-8=4` (results modulo 10), then `<answer>4</answer>`.

    A line applies the next operation of the question to the result in the line before it; the answer repeats the last
    line's result. Raises ValueError for a question that is not a chain of operations.
    """
    return [_scores(texts, _chain_judge(_question(prompt))) for prompt, texts in zip(prompts, steps, strict=True)]


def column_steps(prompts: Sequence[Text], steps: Sequence[Sequence[str]], **_: Any) -> list[list[float]]:
    """Working of `47+85=`: `7+5+0=12`, then `4+8+1=13` (the third summand is the carry), then `<answer>132</answer>`.

    A line adds the next digits from the right and the carry of the line before it; the answer consists of the lines'
    results. Raises ValueError for a question that is not a sum of two numbers.
    """
    return [_scores(texts, _column_judge(_question(prompt))) for prompt, texts in zip(prompts, steps, strict=True)]


def _question(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else content(prompt[-1:])


def _scores(texts: Sequence[str], judge: Judge) -> list[float]:
    """The score of each step. Only the last step may have the answer; no step after an unreadable one is right."""
    scores, readable = [], True
    for i, text in enumerate(texts):
        parts = STEP.fullmatch(text.strip())
        readable = readable and parts is not None
        right = False
        if readable and parts is not None:
            line, answer = parts["line"], parts["answer"]
            readable = (answer is not None) == (i == len(texts) - 1)
            right = (line is not None or answer is not None) and judge(line, answer) and readable
        scores.append(float(right))
    return scores


def _chain_judge(question: str) -> Judge:
    if not CHAIN.fullmatch(question):
        raise ValueError(f"chain_steps judges questions such as 7+5-8=, and this one is {question[:100]!r}")
    state, operations = question[0], list(zip(question[1:-1:2], question[2::2], strict=True))
    done = 0
    lost = False

    def judge(line: str | None, answer: str | None) -> bool:
        nonlocal state, done, lost
        right = True
        if line is not None:
            parts = CHAIN_LINE.fullmatch(line)
            expected = (state, *operations[done]) if done < len(operations) else None
            if lost or parts is None or parts.groups()[:3] != expected:
                lost = True
                return False
            a, operator, b, state = parts.groups()
            right = int(state) == (int(a) + int(b) if operator == "+" else int(a) - int(b)) % 10
            done += 1
        return right and not lost and (answer is None or (done == len(operations) and answer == state))

    return judge


def _column_judge(question: str) -> Judge:
    numbers = SUM.fullmatch(question)
    if numbers is None:
        raise ValueError(f"column_steps judges questions such as 47+85=, and this one is {question[:100]!r}")
    width = max(len(numbers[1]), len(numbers[2]))
    columns = list(zip(reversed(numbers[1].zfill(width)), reversed(numbers[2].zfill(width)), strict=True))
    results: list[str] = []
    lost = False

    def judge(line: str | None, answer: str | None) -> bool:
        nonlocal lost
        right = True
        if line is not None:
            parts = SUM_LINE.fullmatch(line)
            carry = "1" if results and len(results[-1]) == 2 else "0"
            expected = (*columns[len(results)], carry) if len(results) < width else None
            if lost or parts is None or parts.groups()[:3] != expected:
                lost = True
                return False
            results.append(parts[4])
            right = int(parts[4]) == int(parts[1]) + int(parts[2]) + int(parts[3])
        if lost or answer is None:
            return right and not lost
        written = "".join(result[-1] for result in reversed(results[:-1]))
        return right and len(results) == width and answer == results[-1] + written

    return judge
