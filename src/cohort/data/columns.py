"""A task for tests and benchmarks: column addition, with demonstrations of a teacher who often forgets to carry.

    prompt   47+85=
    answer   <think>7+5+0=12
             4+8+1=13</think><answer>132</answer>

One line for each column, from the right: the two digits, the carry, and their sum.
"""

from __future__ import annotations

import random
from typing import Any

Problem = tuple[int, int]


def question(problem: Problem) -> str:
    return f"{problem[0]}+{problem[1]}="


def worked(problem: Problem, forgets: float = 0.0, rng: random.Random | None = None) -> str:
    """The completion: the lines and the answer. A carry is forgotten with probability `forgets`, and the working
    continues with the error."""
    width = max(len(str(number)) for number in problem)
    top, bottom = (str(number).zfill(width) for number in problem)
    carry, lines, written, total = 0, [], "", 0
    for a, b in zip(reversed(top), reversed(bottom), strict=True):
        total = int(a) + int(b) + carry
        lines.append(f"{a}+{b}+{carry}={total}")
        written = str(total % 10) + written
        carry = total // 10
        if carry and rng is not None and rng.random() < forgets:
            carry = 0
    return "<think>" + "\n".join(lines) + f"</think><answer>{total}{written[1:]}</answer>"


def make_columns(
    digits: int, train: int, held_out: int, seed: int, forgets: float = 0.5
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """(demonstrations, training problems, held-out problems) of two numbers of `digits` digits: `train` of each of the
    first two, `held_out` of the last, all problems different. Raises ValueError if there are too few.
    """
    rng = random.Random(seed)
    low, high = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1
    count, possible = 2 * train + held_out, (high - low + 1) ** 2
    if count > possible:
        raise ValueError(f"there are only {possible} different sums of two numbers of {digits} digits")
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        problems[rng.randint(low, high), rng.randint(low, high)] = None
    ordered = list(problems)
    demonstrations = [
        {**_prompt(problem), "completion": [{"role": "assistant", "content": worked(problem, forgets, rng)}]}
        for problem in ordered[:train]
    ]
    answered = [{**_prompt(problem), "answer": str(sum(problem))} for problem in ordered]
    return demonstrations, answered[train : 2 * train], answered[2 * train :]


def _prompt(problem: Problem) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question(problem)}]}
