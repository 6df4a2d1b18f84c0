"""Step rewards that judge each line of working: chains of one-digit operations, and column addition.

A step is right, 1.0, where it follows from the line before it, else 0.0: an error is counted where it is made and not
again in the lines that carry it on. All steps are right exactly where the working is complete and right, and the
answer stands at its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from cohort.rewards.functions.text import content
from cohort.types import Text

STEP = re.compile(r"(?:<think>)?(?P<line>[0-9+\-=]{1,100})?(?:</think>)?(?:<answer>(?P<answer>[0-9]{1,100})</answer>)?")
"""A line of working, the answer, or both, with the tags around them and nothing else."""
CHAIN = re.compile(r"[0-9](?:[+-][0-9])+=")
CHAIN_LINE = re.compile(r"([0-9])([+-])([0-9])=([0-9])")
SUM = re.compile(r"([0-9]{1,100})\+([0-9]{1,100})=")
SUM_LINE = re.compile(r"([0-9])\+([0-9])\+([01])=(1?[0-9])")

Judge = Callable[[str | None, str | None], bool]
"""(a line of working, an answer) of one step, None where it has none -> whether it follows from the steps before."""


def chain_steps(prompts: Sequence[Text], steps: Sequence[Sequence[str]], **_: Any) -> list[list[float]]:
    """Working of `7+5-8=`: the lines `7+5=2` and `2-8=4`, last digit kept, then `<answer>4</answer>`.

    A line applies the next operation of the question to the result that the line before it states; the answer repeats
    the last line's result. Raises ValueError for a question that is no chain.
    """
    return [_scores(texts, _chain_judge(_question(prompt))) for prompt, texts in zip(prompts, steps, strict=True)]


def column_steps(prompts: Sequence[Text], steps: Sequence[Sequence[str]], **_: Any) -> list[list[float]]:
    """Working of `47+85=`: `7+5+0=12`, then `4+8+1=13` (the third is what is carried), then `<answer>132</answer>`.

    A line adds the next digits from the right to the carry that the line before it states; the answer is put together
    from the lines' results. Raises ValueError for a question that is no sum of two numbers.
    """
    return [_scores(texts, _column_judge(_question(prompt))) for prompt, texts in zip(prompts, steps, strict=True)]


def _question(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else content(prompt[-1:])


def _scores(texts: Sequence[str], judge: Judge) -> list[float]:
    """The answer stands in the last step and nowhere else; after a step that cannot be read, nothing follows."""
    scores, readable = [], True
    for i, text in enumerate(texts):
        found = STEP.fullmatch(text.strip())
        readable = readable and found is not None
        right = False
        if readable and found is not None:
            line, answer = found["line"], found["answer"]
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
            found = CHAIN_LINE.fullmatch(line)
            expected = (state, *operations[done]) if done < len(operations) else None
            if lost or found is None or found.groups()[:3] != expected:
                lost = True
                return False
            a, operator, b, state = found.groups()
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
            found = SUM_LINE.fullmatch(line)
            carry = "1" if results and len(results[-1]) == 2 else "0"
            expected = (*columns[len(results)], carry) if len(results) < width else None
            if lost or found is None or found.groups()[:3] != expected:
                lost = True
                return False
            results.append(found[4])
            right = int(found[4]) == int(found[1]) + int(found[2]) + int(found[3])
        if lost or answer is None:
            return right and not lost
        written = "".join(result[-1] for result in reversed(results[:-1]))
        return right and len(results) == width and answer == results[-1] + written

    return judge
