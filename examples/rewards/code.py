"""Rewards for programs: the row's tests in the sandbox, with options, and a penalty of one's own beside them.

    reward_funcs: examples/rewards/code.py:tests,examples/rewards/code.py:imports

Rows need `test_list`, such as ["assert add(1, 2) == 3"], or HumanEval's `test` and `entry_point`.
"""

from __future__ import annotations

from typing import Any

from cohort.rewards import unit_tests_reward

tests = unit_tests_reward(share=True, seconds=2, memory_mb=256)
"""The share of the row's tests that pass, 0 to 1, under smaller limits than usual."""


def imports(completions: list[Any], **_: Any) -> list[float]:
    """-0.1 for a program that imports something: these problems need nothing."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [-0.1 * any(line.lstrip().startswith(("import ", "from ")) for line in text.split("\n")) for text in texts]
