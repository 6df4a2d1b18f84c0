"""Rewards with options: how a configuration names them, and what it is told of mistakes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cohort.config import read_run
from cohort.rewards import BUILTIN, Rewards, resolve, reward
from cohort.rewards.functions.table import TABLE, record_of
from cohort.rewards.resolve import with_run_defaults
from cohort.types import UserError

OWN = """
def scaled(completions, factor=1.0, **columns):
    return [factor * len(completion) for completion in completions]

async def offset(completions, plus):
    return [plus] * len(completions)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def test_a_built_in_with_options() -> None:
    rewards = Rewards([{"name": "too_short", "least": 3, "penalty": -1}, {"name": "format", "strict": True}, "format"])
    assert rewards.names == ["too_short", "format", "format_2"]
    scores = rewards(["p"], ["<think>a b</think> c <answer>d</answer>"], [[1]], {})
    assert scores.components == {"too_short": [0], "format": [0], "format_2": [1]}
    assert resolve({"name": "accuracy"}) == ("accuracy", BUILTIN["accuracy"])
    assert reward("reasoning_keywords", keywords=["行", "列"])(["<reasoning>第一行</reasoning>"]) == [0.1]


def test_options_without_values_are_the_built_in() -> None:
    text = "<reasoning>row one two</reasoning><answer>\\boxed{B} 3</answer>"
    names = {record.name for record in TABLE.values() if record.make is not None and record.function is not None}
    for name in names - {"unit_tests"}:
        arguments = {"completions": [text], "completion_ids": [[1] * 1000], "answer": ["B"]}
        assert reward(name)(**arguments) == BUILTIN[name](**arguments)


def test_a_record_is_found_by_its_function_with_or_without_options() -> None:
    for name, function in BUILTIN.items():
        assert record_of(function) is TABLE[name]
    assert record_of(reward("format", strict=True)) is TABLE["format"]
    assert record_of(reward("unit_tests", share=True)) is TABLE["unit_tests"]

    def accuracy(completions: list[str]) -> list[float]:
        return [0.0] * len(completions)

    assert record_of(accuracy) is None
    judged = {kind: [r.name for r in TABLE.values() if r.judges == kind] for kind in ("answer", "program")}
    assert judged == {
        "answer": ["accuracy", "correctness", "choice_accuracy", "choice", "facts"],
        "program": ["unit_tests"],
    }


def test_ones_own_function_with_options(own: str) -> None:
    rewards = Rewards([{"name": f"{own}:scaled", "factor": 0.5}, {"name": f"{own}:offset", "plus": 3}])
    scores = rewards(["p", "q"], ["ab", "abcd"], [[1], [2]], {"factor": [9, 9], "plus": [9, 9]})
    assert scores.components == {"scaled": [1, 2], "offset": [3, 3]}
    _, function = resolve({"name": f"{own}:offset", "plus": 3})
    assert asyncio.run(function(completions=["x"])) == [3]


def test_overlong_has_the_runs_limit_unless_it_names_its_own() -> None:
    assert with_run_defaults("overlong", 100) == [{"max_length": 100, "name": "overlong"}]
    assert with_run_defaults({"name": "overlong", "cache": 50}, 100) == [
        {"max_length": 100, "name": "overlong", "cache": 50}
    ]
    assert with_run_defaults([{"name": "overlong", "max_length": 7}, "format"], 100)[0]["max_length"] == 7
    assert (
        with_run_defaults(None, 100) == []
        and with_run_defaults(["a", "b"], 100) == ["a", "b"]
        and with_run_defaults(len, 100) == [len]
    )
    scores = Rewards(with_run_defaults(["overlong"], 100))(["p"] * 3, [""] * 3, [[0] * n for n in (80, 90, 100)], {})
    assert scores.totals == pytest.approx([0, -0.5, -1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "format", "strikt": True}, r"it has no option 'strikt': did you mean 'strict'\?\. It has: strict"),
        ({"name": "format", "strict": "very"}, "strict is 'very': Input should be a valid boolean"),
        ({"name": "too_short", "least": 2.5}, "least is 2.5: "),
        ({"name": "reasoning_keywords", "keywords": "row"}, "keywords is 'row': "),
        ({"name": "reasoning_gym", "strict": True}, "'reasoning_gym' takes no options"),
        ({"name": "formt", "strict": True}, r"unknown reward 'formt': did you mean 'format'\?"),
        ({"nmae": "format"}, r"not one with the keys nmae"),
        ({}, "a reward with options is"),
        ({"name": "overlong", "max_length": 10, "cache": 11}, "cache is 11"),
    ],
)
def test_mistakes_in_options(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(spec)


def test_mistakes_in_ones_own_options(own: str) -> None:
    with pytest.raises(UserError, match=r"'offset' has no parameter 'pluss': did you mean 'plus'\?"):
        resolve({"name": f"{own}:offset", "pluss": 1})
    with pytest.raises(UserError, match="'nothing' is unknown"):
        reward("nothing")


def test_a_configuration_names_rewards_with_options(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: m\ndataset: d\nreward_funcs:\n  - accuracy\n  - {name: choice, labels: ABCDE, strict: true}\n"
        "  - judge: {url: http://localhost:1/v1, model: j, rubric: 'Is it kind?'}\n"
        "  - {model: owner/rm, batch_size: 4}\n"
    )
    run, _ = read_run(path)
    assert run.reward_funcs == [
        "accuracy",
        {"name": "choice", "labels": "ABCDE", "strict": True},
        {"judge": {"url": "http://localhost:1/v1", "model": "j", "rubric": "Is it kind?"}},
        {"model": "owner/rm", "batch_size": 4},
    ]
    path.write_text("model: m\ndataset: d\nreward_funcs: {name: facts, strict: true}\n")
    assert read_run(path)[0].reward_funcs == [{"name": "facts", "strict": True}]
    path.write_text("model: m\ndataset: d\nreward_funcs: accuracy, owner/rm\n")
    assert read_run(path)[0].reward_funcs == ["accuracy", "owner/rm"]
