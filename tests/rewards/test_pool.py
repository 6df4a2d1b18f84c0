"""Reward functions in worker processes: the same scores, limits that hold, failures that name their row."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cohort.rewards import RewardFunctionError, Rewards, Scores
from cohort.types import TrainerState, UserError

FILE = """
import asyncio, os, re, time
import numpy as np

def length(completions, level, trainer_state, log_metric, log_extra, **columns):
    print("what a function prints is no reply")
    log_metric("level", sum(level) / len(level))
    log_extra("seen", [f"{c}@{trainer_state.global_step}" for c in completions])
    return np.array([len(c) for c in completions], dtype=np.float32)

async def awaited(completions):
    await asyncio.sleep(0.001)
    return [None if c == "none" else 1 for c in completions]

def process(completions):
    time.sleep(0.2)
    return [os.getpid()] * len(completions)

def hangs(prompts, completions):
    for completion in completions:
        if completion == "hang":
            re.match(r"(a+)+$", "a" * 40 + "b")
    return [0.0] * len(completions)

def dies(completions):
    if "die" in completions:
        os._exit(3)
    return [0.0] * len(completions)

def raises(completions):
    return [1 / (c != "zero") for c in completions]

def words(completions):
    return ["good" for c in completions]

def drawn(completions):
    import random
    return [random.random() + np.random.random() for _ in completions]

def prompts_only(prompts):
    return [float(len(p)) for p in prompts]
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


def score(rewards: Rewards, completions: list[str], **columns: list[Any]) -> Scores:
    prompts = [f"p{i}" for i in range(len(completions))]
    return rewards(prompts, completions, [[1]] * len(completions), columns, TrainerState(global_step=5))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_as_in_this_process(file: str, processes: int) -> None:
    here = Rewards([f"{file}:length", f"{file}:awaited", f"{file}:prompts_only"])
    names = ("length", "awaited", "prompts_only")
    there = Rewards([{"name": f"{file}:{name}", "processes": processes, "timeout": 30} for name in names])
    completions = ["", "a", "none", "dddd", "é", "f", "g", "h", "i"]
    level = list(range(9))
    for _ in range(2):
        a, b = score(here, completions, level=level), score(there, completions, level=level)
        assert a.components == b.components and a.totals == b.totals
        assert a.extra == b.extra and b.extra["seen"][3] == "dddd@5"
    assert a.metrics == {"level": 4.0}
    assert b.metrics["level"] == 4.0


def test_a_built_in_runs_in_a_pool() -> None:
    rewards = Rewards([{"name": "accuracy", "processes": 2, "weight": 2}])
    assert score(rewards, ["so 4", "5"], answer=["4", "4"]).totals == [2, 0]


def test_processes_work_side_by_side(file: str) -> None:
    rewards = Rewards([{"name": f"{file}:process", "processes": 2}])
    found = score(rewards, [""] * 4).components["process"]
    assert len(set(found)) == 2 and os.getpid() not in found


def test_a_call_that_hangs_is_killed_and_named_with_its_row_and_place(file: str) -> None:
    rewards = Rewards([{"name": f"{file}:hangs", "timeout": 0.5}])
    caught: list[Any] = []

    def in_a_thread() -> None:
        try:
            score(rewards, ["a", "b", "hang", "c"])
        except RewardFunctionError as error:
            caught.append(error)

    thread = threading.Thread(target=in_a_thread)
    started = time.monotonic()
    thread.start()
    thread.join()
    assert time.monotonic() - started < 30
    message = str(caught[0])
    assert "'hangs' did not return within its time limit of 0.5 s" in message
    assert "mine.py" in message and "in hangs" in message and "pool_worker" not in message
    assert "at row 2 of 4\n  prompt: 'p2'\n  completion: 'hang'" in message
    assert score(rewards, ["a", "b"]).totals == [0, 0]


def test_a_process_that_ends_and_one_that_raises(file: str) -> None:
    with pytest.raises(RewardFunctionError, match=r"'dies' lost its worker process.*code 3\n  at row 1 of 2"):
        score(Rewards([{"name": f"{file}:dies", "processes": 1}]), ["a", "die"])
    with pytest.raises(RewardFunctionError) as caught:
        score(Rewards([{"name": f"{file}:raises", "processes": 2}]), ["a", "b", "zero"])
    message = str(caught.value)
    assert "'raises' raised ZeroDivisionError: division by zero\n  at row 2 of 3" in message
    assert "return [1 / (c != " in message


def test_what_is_no_score_and_what_cannot_be_sent(file: str) -> None:
    with pytest.raises(UserError, match=r"'words' returned \"'good'\" \(str\) for row 0"):
        score(Rewards([{"name": f"{file}:words", "timeout": 9}]), ["a"])
    with pytest.raises(UserError, match="accuracy compares with a reference answer"):
        score(Rewards([{"name": "accuracy", "timeout": 9}]), ["a"])
    with pytest.raises(UserError, match=r"'length' runs in a worker process.*a set is not a JSON value"):
        score(Rewards([{"name": f"{file}:length", "timeout": 9}]), ["a"], level=[1], other=[{1}])


def test_functions_that_a_process_cannot_import_are_refused() -> None:
    for function in (lambda completions: [0], partial(score), test_a_built_in_runs_in_a_pool.__call__):
        with pytest.raises(UserError, match="a worker process cannot import it"):
            Rewards([{"name": function, "timeout": 1}])
    Rewards([{"name": score, "timeout": 1}])


def test_random_numbers_of_a_row_do_not_depend_on_the_processes(file: str) -> None:
    """They are the same again in other processes, and others for another seed, step or completion."""

    def drawn(rewards: Rewards, step: int = 5, last: str = "b") -> list[Any]:
        state = TrainerState(global_step=step)
        return rewards(["p"] * 4, ["a", "a", "a", last], [[1]] * 4, {}, state).components["drawn"]

    one, two, three = (Rewards([{"name": f"{file}:drawn", "processes": n}], seed=7) for n in (1, 2, 3))
    first = drawn(two)
    assert len(set(first)) == 4 and drawn(two) == drawn(three) == first
    changed = drawn(two, last="c")
    assert changed[:3] == first[:3] and changed[3] != first[3]
    assert not set(drawn(two, step=6)) & set(first)
    assert drawn(one) == drawn(one)  # the whole batch in one call
    assert not set(drawn(Rewards([{"name": f"{file}:drawn", "processes": 2}], seed=8))) & set(first)
