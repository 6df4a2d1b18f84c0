from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cohort.rewards import BUILTIN, RewardFunctionError, Rewards, accuracy, calls, resolve
from cohort.types import TrainerState, UserError


def run(*funcs: Any, weights: list[float] | None = None, **columns: list[Any]):
    prompts, completions = ["2+2=?", "3+3=?"], ["<answer>4</answer>", "<answer>7</answer>"]
    return Rewards(list(funcs), weights)(prompts, completions, [[1, 2], [3]], columns, TrainerState(global_step=5))


def ones(completions, **_):
    return [1.0] * len(completions)


def test_weighted_sum_of_what_applies() -> None:
    def half(completions, **_):
        return [None, 0.5]

    scores = run("accuracy", half, "format", weights=[2.0, 10.0, 1.0], answer=["4", "6"])
    assert scores.components == {"accuracy": [1, 0], "half": [None, 0.5], "format": [0, 0]}
    assert scores.totals == [2.0, 5.0]


def test_names_of_duplicates_and_of_callables() -> None:
    class Judge:
        def __call__(self, completions):
            return [0, 0]

    rewards = Rewards(["format", ones, ones, partial(ones), Judge(), "format"])
    assert rewards.names == ["format", "ones", "ones_2", "ones_3", "Judge", "format_2"]
    assert rewards.weights == [1.0] * 6
    assert run(ones, ones, Judge()).totals == [2, 2]


def test_functions_are_called_by_keyword_as_trl_does() -> None:
    seen: dict[str, Any] = {}

    def everything(prompts, completions, completion_ids, level, **kwargs):
        seen.update(kwargs, prompts=prompts, completion_ids=completion_ids, level=level)
        kwargs["log_metric"]("judged", 1)
        kwargs["log_metric"]("judged", 2)
        kwargs["log_extra"]("verdict", ["a", "b"])
        return [0, 0]

    scores = run(everything, level=[1, 2], answer=["4", "6"])
    assert seen["prompts"] == ["2+2=?", "3+3=?"] and seen["completion_ids"] == [[1, 2], [3]]
    assert seen["level"] == [1, 2] and seen["answer"] == ["4", "6"] and seen["trainer_state"].global_step == 5
    assert scores.metrics == {"judged": 1.5} and scores.extra == {"verdict": ["a", "b"]}


def test_a_function_gets_only_what_it_names() -> None:
    def short(completions, level):
        return [float(v) for v in level]

    def logging(completions, log_metric):
        log_metric("x", 3)
        return [0, 0]

    def optional(completions, missing=7):
        return [missing, missing]

    scores = run(short, logging, optional, level=[1, 2], other=["", ""])
    assert scores.totals == [8, 9] and scores.metrics == {"x": 3}


@pytest.mark.parametrize("column", ["output", "answer", "ground_truth"])
def test_references_are_served_from_any_reference_column(column: str) -> None:
    def graded(completions, references, **_):
        return [float(reference) for reference in references]

    assert run(graded, **{column: ["4", "6"]}).totals == [4, 6]


def test_a_missing_column_is_named() -> None:
    def graded(completion, **_):
        return [0, 0]

    with pytest.raises(UserError, match=r"'graded' asks for 'completion'.*did you mean 'completions'.*have: level,"):
        run(graded, level=[1, 2])

    def referenced(completions, references):
        return [0, 0]

    with pytest.raises(UserError, match="'referenced' asks for 'references'"):
        run(referenced, level=[1, 2])


def test_async_functions_run_together() -> None:
    barrier: list[asyncio.Event] = []

    async def first(completions, **_):
        barrier.append(asyncio.Event())
        await asyncio.wait_for(barrier[0].wait(), 10)
        return [1, 2]

    async def second(completions, **_):
        while not barrier:
            await asyncio.sleep(0.001)
        barrier[0].set()
        return [10, 20]

    assert run(first, ones, second).totals == [12, 23]


def test_async_functions_run_where_a_loop_runs_already() -> None:
    async def notebook():
        async def scored(completions):
            await asyncio.sleep(0)
            return [3, 4]

        return run(scored).totals

    assert asyncio.run(notebook()) == [3, 4]


@pytest.mark.parametrize(
    "returned",
    [
        [True, 2],
        (1, 2.0),
        np.array([1.0, 2.0], dtype=np.float32),
        torch.tensor([1.0, 2.0], requires_grad=True),
        [np.float32(1), torch.tensor(2)],
        [np.bool_(True), Fraction(2)],
    ],
)
def test_numbers_of_every_kind(returned: Any) -> None:
    scores = run(lambda completions: returned)
    assert scores.totals == [1, 2] and all(type(total) is float for total in scores.components["<lambda>"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "'bad' returned 1 scores for 2 completions"),
        (1.0, r"'bad' returned '1.0' \(float\): return a list"),
        (None, r"'bad' returned 'None' \(NoneType\)"),
        ({"a": 1}, "return a list with one number for each completion"),
        ([1.0, "2"], r"""'bad' returned "'2'" \(str\) for row 1"""),
        (
            torch.ones(2, 1),
            r"\(list\) for row 0, whose completion starts '<answer>4</answer>': a score is a number or None",
        ),
        ([1.0, float("nan")], "'bad' returned nan for row 1, whose completion starts '<answer>7</answer>'"),
        ([float("-inf"), 0], "'bad' returned -inf for row 0"),
        ([10**400, 0], "'bad' returned inf for row 0"),
    ],
)
def test_what_is_not_a_score(returned: Any, message: str) -> None:
    def bad(completions, **_):
        return returned

    with pytest.raises(UserError, match=message):
        run(bad)


def test_a_nan_shows_only_the_start_of_a_long_completion() -> None:
    rewards = Rewards([lambda completions: [float("nan")]])
    with pytest.raises(UserError) as caught:
        rewards(["p"], [[{"role": "assistant", "content": "x" * 300}]], [[1]], {})
    assert "x" * 200 in str(caught.value) and "x" * 201 not in str(caught.value)


def test_a_row_to_which_nothing_applies() -> None:
    def never(completions, **_):
        return [0.0, None]

    with pytest.raises(UserError, match=r"no reward applies to the row whose prompt starts '3\+3=\?': never, also"):
        also = lambda completions: [None, None]  # noqa: E731
        also.__name__ = "also"
        run(never, also)


def test_a_function_that_raises_names_the_row() -> None:
    def strict(completions, **_):
        return [{"<answer>4</answer>": 1.0}[completion] for completion in completions]

    with pytest.raises(RewardFunctionError) as caught:
        run(ones, strict)
    message = str(caught.value)
    assert "'strict' raised KeyError: '<answer>7</answer>'" in message and "at row 1 of 2" in message
    assert "prompt: '3+3=?'" in message and "completion: '<answer>7</answer>'" in message
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_raises_on_the_whole_batch_only() -> None:
    def whole(prompts, completions, log_metric):
        if len(completions) == 1:
            raise ZeroDivisionError
        raise TypeError("two")

    with pytest.raises(RewardFunctionError, match=r"^reward function 'whole' raised TypeError: two\n  File ") as caught:
        run(whole)
    assert "at row" not in str(caught.value)


def test_an_async_function_that_raises_names_the_row() -> None:
    async def judge(prompts, completions):
        if "3+3=?" in prompts:
            raise OSError("no answer")
        return [1.0] * len(completions)

    with pytest.raises(
        RewardFunctionError, match=r"'judge' raised OSError: no answer\n  at row 1 of 2\n  prompt: '3"
    ) as caught:
        run(judge)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_users_mistake_stays_one() -> None:
    with pytest.raises(UserError, match="accuracy compares with a reference answer"):
        run("accuracy", level=[1, 2])

    async def picky(completions):
        raise UserError("not so")

    with pytest.raises(UserError, match=r"^not so$"):
        run(picky)

    def logger(completions, log_extra):
        log_extra("verdict", ["only one"])
        return [0, 0]

    with pytest.raises(UserError, match="'logger' gave log_extra 1 values of 'verdict' for 2 completions"):
        run(logger)


def test_weights_and_functions_are_checked() -> None:
    with pytest.raises(UserError, match="reward_weights has 1 values, and there are 2 rewards: accuracy, format"):
        Rewards(["accuracy", "format"], [1.0])
    with pytest.raises(UserError, match="finite"):
        Rewards(["format"], [float("nan")])
    with pytest.raises(UserError, match="reward_funcs is empty"):
        Rewards([])


def test_resolving_built_ins() -> None:
    assert resolve("accuracy") == ("accuracy", accuracy)
    assert resolve("format")[0] == "format" and resolve(ones) == ("ones", ones)
    for name in BUILTIN:
        assert resolve(name)[1] is BUILTIN[name]


FILE = """
from dataclasses import dataclass

calls = []

@dataclass
class Pair:
    a: int

def length(completions, **_):
    calls.append(1)
    return [len(c) for c in completions]

def count(completions, **_):
    return [float(len(calls)) for c in completions]

constant = 3
"""


def test_resolving_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my rewards.v1.py"
    path.write_text(FILE)
    assert run(f"{path}:length", f"{path}:count").components == {"length": [18, 18], "count": [1, 1]}
    with pytest.raises(UserError, match=r"'lenght' is not there in .*did you mean 'length'"):
        resolve(f"{path}:lenght")
    with pytest.raises(UserError, match="'constant' is not a function"):
        resolve(f"{path}:constant")
    with pytest.raises(UserError, match="there is no file"):
        resolve(f"{tmp_path}/other.py:length")
    broken = tmp_path / "broken.py"
    broken.write_text("1/0")
    for _ in range(2):
        with pytest.raises(UserError, match=r'ZeroDivisionError: division by zero\n  File ".*broken.py", line 1'):
            resolve(f"{broken}:length")


def test_resolving_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("cohort.rewards.functions.text:accuracy") == ("accuracy", accuracy)
    with pytest.raises(UserError, match=r"there is no module 'cohort\.nothing'"):
        resolve("cohort.nothing:accuracy")
    with pytest.raises(UserError, match="there is no module 'nothing_at_all'"):
        resolve("nothing_at_all.rewards:accuracy")
    (tmp_path / "needs_more.py").write_text("import nothing_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"No module named 'nothing_at_all'\n  File \".*needs_more.py\", line 1"):
        resolve("needs_more:f")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"unknown reward 'acuracy': did you mean 'accuracy'\?.*accuracy, format"):
        resolve("acuracy")
    with pytest.raises(UserError, match="a reward is a function, a name or a mapping, not 3"):
        resolve(3)


def scored(completions, values, **_):
    return [float(value) for value in values]


def test_a_component_is_weighted_gated_and_clipped() -> None:
    def negative(completions, **_):
        return [-1.0, None]

    rewards = Rewards(
        [
            {"name": scored, "clip": [-0.5, 3], "weight": 2},
            {"name": "format", "weight": 0.5, "gate": "scored"},
            {"name": negative, "gate": ["scored", "format"]},
            "tag_presence",
        ]
    )
    tagged = "<think>.</think><answer>4</answer>"
    found = rewards(["p"] * 2, [tagged] * 2, [[1]] * 2, {"values": [4, -1]}, None)
    assert found.components == {
        "scored": [4, -1],
        "format": [1, 1],
        "negative": [-1, None],
        "tag_presence": [0.4, 0.4],
    }
    assert found.counted == {
        "scored": [3, -0.5],
        "format": [1, 0],
        "negative": [-1, None],
        "tag_presence": [0.4, 0.4],
    }
    assert found.totals == pytest.approx([2 * 3 + 0.5 - 1 + 0.4, 2 * -0.5 + 0.4])
    assert found.metrics == {
        "rewards/scored/clipped_ratio": 1,
        "rewards/format/gated_ratio": 0.5,
        "rewards/negative/gated_ratio": 0.5,
    }
    assert set(found.seconds) == set(rewards.names) and all(s >= 0 for s in found.seconds.values())


def test_a_gate_that_does_not_apply_is_closed() -> None:
    def sometimes(completions, **_):
        return [None, 1.0]

    found = Rewards([sometimes, {"name": ones, "gate": "sometimes"}])(["p"] * 2, ["c"] * 2, [[1]] * 2, {})
    assert found.counted["ones"] == [0, 1] and found.totals == [0, 2]


def test_the_total_is_clipped_and_counted() -> None:
    found = Rewards([scored], [2.0], clip=(-5, 5))(["p"] * 4, ["c"] * 4, [[1]] * 4, {"values": [1, 3, -9, 2.5]})
    assert found.totals == [2, 5, -5, 5] and found.metrics == {"rewards_clipped_ratio": 0.5}
    assert found.counted["scored"] == [1, 3, -9, 2.5]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"name": "format", "wieght": 1}], r"reward 'format': unknown key 'wieght': did you mean 'weight'\?"),
        (
            [{"name": "format", "gate": "acuracy"}, "accuracy"],
            r"gate 'acuracy' is not a reward.*did you mean 'accuracy'",
        ),
        ([{"name": "format", "gate": "format"}], "'format' is its own gate"),
        ([{"name": "format", "clip": [1, 0]}], r"reward 'format': `clip` is \[1, 0\]: \[1, 0\] is no interval"),
        ([{"name": "format", "weight": float("inf")}], "reward 'format': `weight` is inf"),
        ([{"name": "format", "timeout": 0}], "reward 'format': `timeout` is 0"),
        ([{"name": "formt", "weight": 1}], "unknown reward 'formt': did you mean 'format'"),
        ([{"weight": 1}], r"a reward without a name: \{'weight': 1\}"),
    ],
)
def test_a_mistake_in_a_composition_is_told(specs: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rewards(specs)


def test_a_call_that_takes_long_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(calls, "SLOW_SECONDS", 0.01)

    def slow(completions):
        time.sleep(0.2)
        return [0, 0]

    run(slow)
    (record,) = caplog.records
    assert "'slow' has been running for 0.01 s on 2 completions" in record.message and "timeout" in record.message


def test_weights_are_given_once() -> None:
    assert Rewards(["accuracy", {"name": "format", "weight": 0.5}]).weights == [1, 0.5]
    with pytest.raises(UserError, match="reward_weights and the weight of format set the same value"):
        Rewards(["accuracy", {"name": "format", "weight": 0.5}], [1, 1])
