"""Calls of reward functions: what a function does to its arguments or to the process stays with that function."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohort.rewards import RewardFunctionError, Rewards
from cohort.rewards.check.explain import try_rewards
from cohort.rewards.steps import by_separator
from cohort.types import Row, TrainerState, UserError


def ends(how: Callable[[], Any]) -> Callable[..., list[float]]:
    def mine(completions: list[str], **columns: Any) -> list[float]:
        if "end" in completions:
            how()
        return [0.0] * len(completions)

    return mine


def raising(error: BaseException) -> Callable[[], None]:
    def how() -> None:
        raise error

    return how


def score(functions: list[Any], completions: list[Any], split: Any = None, **columns: list[Any]) -> Any:
    prompts = [f"p{i}" for i in range(len(completions))]
    return Rewards(functions, split=split)(prompts, completions, [[1, 2]] * len(completions), columns, TrainerState())


EXITS = [
    (lambda: sys.exit(), "SystemExit"),
    (lambda: sys.exit(0), "SystemExit: 0"),
    (lambda: exec("raise SystemExit('bye')"), "SystemExit: bye"),
    (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    (raising(GeneratorExit()), "GeneratorExit"),
    (raising(asyncio.CancelledError()), "CancelledError"),
    (raising(StopIteration()), "StopIteration"),
]


@pytest.mark.parametrize(("how", "said"), EXITS)
@pytest.mark.parametrize("thread", [False, True])
def test_an_exit_is_an_error_that_names_the_function_and_the_row(how: Any, said: str, thread: bool) -> None:
    message = rf"(?s)'mine' raised {said}.*at row 1 of 3\n  prompt: 'p1'\n  completion: 'end'"
    with ThreadPoolExecutor(1) as pool, pytest.raises(RewardFunctionError, match=message):
        call = (score, [ends(how)], ["a", "end", "b"])
        pool.submit(*call).result() if thread else call[0](*call[1:])


@pytest.mark.parametrize("inside", ["coroutine", "task", "group"])
@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_exit_of_an_async_function(error: BaseException, inside: str) -> None:
    async def one(completion: str) -> float:
        await asyncio.sleep(0)
        if completion == "end":
            raise error
        return 1.0

    async def mine(completions: list[str]) -> list[float]:
        if inside == "group":
            return list(await asyncio.gather(*map(one, completions)))
        return [await (asyncio.create_task(one(c)) if inside == "task" else one(c)) for c in completions]

    async def other(completions: list[str]) -> list[float]:
        await asyncio.sleep(0.01)
        return [2.0] * len(completions)

    with pytest.raises(RewardFunctionError, match=rf"(?s)'mine' raised {type(error).__name__}.*at row 1 of 2"):
        score([mine, other], ["a", "end"])
    # The event loop still runs.
    assert score([mine, other], ["a", "b"]).totals == [3, 3]


def test_an_exit_of_a_step_reward_a_splitter_and_an_explanation() -> None:
    def of_steps(completions: list[str], steps: list[list[str]]) -> list[list[float]]:
        sys.exit(0)

    with pytest.raises(RewardFunctionError, match=r"(?s)'of_steps' raised SystemExit: 0.*at row 0 of 1"):
        score([of_steps], ["a\nb"], split=by_separator("\n"))
    with pytest.raises(UserError, match=r"the step splitter calls sys.exit\(3\) for the text 'a'"):
        score([of_steps], ["a"], split=lambda text: sys.exit(3))
    mine = ends(lambda: None)
    mine.explain = lambda text, row: sys.exit(0)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"r1: `explain` of reward 'mine' calls sys.exit\(0\)"):
        try_rewards(Rewards([mine]), [Row("p", "c", {}, "r1")])


def test_an_exit_while_a_file_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import sys\ndef mine(completions):\n    return [0]\nsys.exit()\n")
    for spec in (f"{path}:mine", {"name": f"{path}:mine", "timeout": 9}):
        with pytest.raises(UserError, match=r"importing .*script.py calls sys.exit\(None\)"):
            Rewards([spec])


def test_ctrl_c_still_interrupts() -> None:
    def pressed() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)

    # A shell starts what runs in its background with the signal ignored.
    handler, before = signal.default_int_handler, signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            score([ends(pressed)], ["a", "end"])
        assert signal.getsignal(signal.SIGINT) is handler
        score([ends(pressed)], ["a"])
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_process_is_no_second_trainer() -> None:
    code = (
        "import os, sys\n"
        "from cohort.rewards import Rewards\n"
        "def mine(completions):\n"
        "    child = os.fork()\n"
        "    if child == 0 and completions == ['exit']:\n        sys.exit(3)\n"
        "    if child:\n        os.waitpid(child, 0)\n"
        "    return [0]\n"
        "for word in ('returns', 'exit'):\n"
        "    Rewards([mine])(['p'], [word], [[1]], {})\n"
        "    print(word, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["returns", "exit"]


@dataclass
class Note:
    words: list[str] = field(default_factory=lambda: ["x"])


def columns_of_every_kind() -> dict[str, list[Any]]:
    shared = {"role": "user", "content": ["x"]}
    return {
        "answer": ["4", "5"],
        "lists": [[1, [2, 3]], [[4]]],
        "mappings": [{"a": {"b": [1]}}, {}],
        "tuples": [([1],), ((2, [3]), 4)],
        "sets": [{1}, {2}],
        "arrays": [np.arange(3), np.arange(2)],
        "bytearrays": [bytearray(b"x"), bytearray(b"y")],
        "objects": [Note(), Note()],
        "same": [shared, shared],
    }


def edits(
    prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], trainer_state: TrainerState, **c: Any
) -> list[float]:
    for prompt in prompts:
        prompt[-1]["content"] += "!"
        assert prompt[-1]["content"] == "q!"
        prompt.append({"role": "user", "content": "more"})
    for completion in completions:
        completion[0]["content"] = "gone"
    for ids in completion_ids:
        ids.clear()
    trainer_state.log_history[0]["loss"] = 9.0
    trainer_state.log_history.append({})
    trainer_state.global_step = 99
    c["lists"][0][1].append(9)
    c["mappings"][0]["a"]["b"].clear()
    c["tuples"][0][0].clear()
    c["tuples"][1][0][1].clear()
    c["sets"][0].add(5)
    c["arrays"][0][:] = -1
    c["bytearrays"][0].extend(b"z")
    c["objects"][0].words.clear()
    c["same"][0]["content"].append("y")
    assert c["same"][1]["content"] == ["x"]
    for values in (prompts, completions, completion_ids, *(c[name] for name in columns_of_every_kind())):
        values.clear()
    return [0.0, 0.0]


def test_what_a_function_changes_in_its_arguments_is_seen_by_no_one() -> None:
    seen: list[Any] = []

    def then(**arguments: Any) -> list[float]:
        seen.append(arguments)
        return [1.0, 1.0]

    async def edits_later(**arguments: Any) -> list[float]:
        await asyncio.sleep(0)
        return edits(**arguments)

    def given() -> dict[str, Any]:
        question = [{"role": "user", "content": "q"}]
        return {
            "prompts": [question, question],
            "completions": [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
            "completion_ids": [[1, 2], [3]],
            "columns": columns_of_every_kind(),
            "trainer_state": TrainerState(5, log_history=[{"loss": 1.0}]),
        }

    arguments = given()
    assert Rewards([edits_later, edits, edits, then])(**arguments).totals == [1, 1]
    assert repr(arguments) == repr(given())
    expected = given()
    expected |= expected.pop("columns")
    assert repr({name: seen[0][name] for name in expected}) == repr(expected)


def test_the_search_for_the_row_leaves_the_arguments_as_they_are() -> None:
    def mine(completions: list[list[dict[str, str]]], level: list[list[int]]) -> list[float]:
        total = 0
        for completion, numbers in zip(completions, level, strict=True):
            completion[0]["content"] = "gone"
            total += 1 // numbers.pop()
        return [total] * len(completions)

    completions = [[{"role": "assistant", "content": text}] for text in "abc"]
    level = [[1], [0], [2]]
    with pytest.raises(RewardFunctionError, match=r"(?s)at row 1 of 3.*completion: 'b'"):
        score([mine], completions, level=level)
    assert level == [[1], [0], [2]] and [c[0]["content"] for c in completions] == ["a", "b", "c"]


def test_an_explanation_cannot_change_the_row() -> None:
    mine = ends(lambda: None)
    mine.explain = lambda text, row: row["words"].clear()  # type: ignore[attr-defined]
    row = Row("p", "c", {"words": ["x"]}, "r1")
    try_rewards(Rewards([mine]), [row])
    assert row.columns == {"words": ["x"]}
