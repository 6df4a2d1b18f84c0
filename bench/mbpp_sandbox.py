"""MBPP's reference programs through `unit_tests`: scores with the original tests and with one test inverted, and speed.

    python bench/mbpp_sandbox.py path/to/mbpp.jsonl [rows] [seconds of processor time for a program]

prints, for each, how many programs score what, the exceptions with why, and programs per second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from cohort.rewards import unit_tests_reward
from cohort.rewards.sandbox.layers import find_layers


def inverted(tests: list[str]) -> list[str]:
    """The tests with the last assertion negated."""
    return [*tests[:-1], f"assert not ({tests[-1].removeprefix('assert ')})"]


def score(rows: list[dict[str, Any]], tests: list[list[str]], expected: float, seconds: float) -> None:
    reward, reasons = unit_tests_reward(seconds=seconds), dict[str, list[str]]()
    started = time.perf_counter()
    scores = reward(
        [row["code"] for row in rows],
        log_extra=reasons.__setitem__,
        test_list=tests,
        test_setup_code=[row["test_setup_code"] for row in rows],
    )
    wall = time.perf_counter() - started
    print(f"{scores.count(expected)} of {len(rows)} score {expected:+g}")
    for row, got, reason in zip(rows, scores, reasons["unit_tests"], strict=True):
        if got != expected:
            print(f"  task {row['task_id']}: {got:+g}, {reason}")
    print(f"  {len(rows) / wall:.1f} programs/s")


def main(file: str, count: int = 974, seconds: float = 4.0) -> None:
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()][:count]
    tests = [row["test_list"] for row in rows]
    layers = ", ".join(find_layers().names) or "none"
    load = os.getloadavg()[0]
    print(f"layers: {layers}; processors: {len(os.sched_getaffinity(0))}; load of the machine before: {load:.1f}")
    print("reference programs")
    score(rows, tests, 1.0, seconds)
    print("the same, one assertion inverted")
    score(rows, [inverted(each) for each in tests], -1.0, seconds)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *map(float, sys.argv[3:4]))
