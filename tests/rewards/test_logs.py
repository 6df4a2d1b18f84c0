"""What reward functions may log, and their names in metrics and records."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cohort.config import GRPOConfig
from cohort.data.chains import build_tokenizer
from cohort.rewards import Rewards, Scores
from cohort.rewards.component import TAKEN, column_of
from cohort.rewards.logs import OWN_METRICS
from cohort.train.trainers import GRPOTrainer
from cohort.types import UserError
from helpers import small_model


def logged(call: str, *arguments: Any, rows: int = 2) -> Scores:
    """What a batch's scores hold after one call of log_metric or log_extra."""

    def mine(completions: list[str], log_metric: Any, log_extra: Any) -> list[float]:
        {"log_metric": log_metric, "log_extra": log_extra}[call](*arguments)
        return [0.0] * len(completions)

    return Rewards([mine])(["p"] * rows, ["c"] * rows, [[1]] * rows, {})


OWN = ["step", "epoch", "loss", "reward", "kl", "learning_rate", "seconds/step", "seconds/mine", "eval/mine"]
OWN += ["rewards/mine/mean", "rewards/a/b\u2028c/std", "completions/mean_length", "critic/loss", "num_tokens"]


@pytest.mark.parametrize("name", OWN)
def test_a_metric_of_the_run_is_refused(name: str) -> None:
    with pytest.raises(UserError) as told:
        logged("log_metric", name, 1.0)
    assert str(told.value).startswith("reward function 'mine' ")
    if name.isprintable():
        assert f"the metric {name!r}, which the run writes itself: give it another name, such as 'mine/{name}'" in str(
            told.value
        )
        assert logged("log_metric", f"mine/{name}", 1.0).metrics == {f"mine/{name}": 1.0}


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[2J", "a\r", "\u202ea", "\x9b", None, 1, ("a",), b"a"])
@pytest.mark.parametrize("call", ["log_metric", "log_extra"])
def test_a_name_is_one_line_of_text(call: str, name: Any) -> None:
    with pytest.raises(UserError, match=f"'mine' calls {call} with the name .*: a name is a text in one line") as told:
        logged(call, name, 1.0 if call == "log_metric" else [1, 2])
    assert str(told.value).isprintable()


NUMBERS = [
    (True, 1.0),
    (3, 3.0),
    (np.float32(0.5), 0.5),
    (np.bool_(True), 1.0),
    (np.array([2]), 2.0),
    (torch.tensor(0.25), 0.25),
    (torch.tensor([[0.5]], requires_grad=True), 0.5),
    (Fraction(1, 4), 0.25),
]


@pytest.mark.parametrize(("value", "expected"), NUMBERS)
def test_numbers_of_all_libraries_are_metrics(value: Any, expected: float) -> None:
    metrics = logged("log_metric", "words", value).metrics
    assert metrics == {"words": expected} and type(metrics["words"]) is float


WRONG = [math.nan, math.inf, -math.inf, "0.5", "\x1b[2J", None, 10**400, 10**5000, [1.0, 2.0], [], {}, 1j, b"1"]
WRONG += [np.float64("nan"), np.array([1, 2]), torch.tensor([1.0, 2.0]), torch.tensor(math.inf), Decimal("NaN")]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_a_metric_is_one_finite_number(value: Any) -> None:
    with pytest.raises(UserError, match=r"'mine' gave log_metric .* for 'words': give one finite number") as told:
        logged("log_metric", "words", value)
    assert str(told.value).replace("\n", "").isprintable()


def test_columns_become_plain_values() -> None:
    values: list[Any] = [np.float32(0.5), "\x1b"]
    assert logged("log_extra", "note", values).extra == {"note": [0.5, "\x1b"]}
    assert logged("log_extra", "note", torch.tensor([1, 2])).extra == {"note": [1, 2]}
    assert logged("log_extra", "prompt", ({"a": Path("b")}, None)).extra == {"prompt": [{"a": "b"}, None]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "gave log_extra 1 values of 'note' for 2 completions: give one for each"),
        ([], "gave log_extra 0 values"),
        ("ab", r"gave log_extra 'ab' \(str\) for 'note': give a list"),
        (5, r"gave log_extra 5 \(int\)"),
        ({"a": 1, "b": 2}, r"\(dict\)"),
        ([{(1, 2): 3}, None], "that cannot be written as JSON"),
    ],
)
def test_a_column_has_a_value_for_each_completion(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"reward function 'mine' .*{message}"):
        logged("log_extra", "note", values)


def test_two_functions_with_one_column_keep_both() -> None:
    def first(completions: list[str], log_extra: Any) -> list[float]:
        log_extra("note", ["a", "b"])
        return [0.0, 0.0]

    def second(completions: list[str], log_extra: Any) -> list[float]:
        log_extra("note", ["c", "d"])
        return [0.0, 0.0]

    extra = Rewards([first, second])(["p"] * 2, ["c"] * 2, [[1]] * 2, {}).extra
    assert extra == {"note": ["a", "b"], "second/note": ["c", "d"]}


def test_a_worker_process_checks_alike(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "import numpy as np\n"
        "def mine(completions, what, log_metric, log_extra):\n"
        "    log_metric('words', np.float32(0.5))\n"
        "    log_extra('note', np.arange(len(completions)))\n"
        "    exec(what[0])\n"
        "    return [0] * len(completions)\n"
    )
    rewards = Rewards([{"name": f"{path}:mine", "timeout": 60}])

    def run(what: str) -> Scores:
        return rewards(["p"] * 2, ["c"] * 2, [[1]] * 2, {"what": [what] * 2})

    scores = run("pass")
    assert scores.metrics == {"words": 0.5} and scores.extra == {"note": [0, 1]}
    for what, message in {
        "log_metric('step', 1)": "reward function 'mine' logs the metric 'step', which the run writes itself",
        "log_metric(None, 1)": "'mine' calls log_metric with the name None",
        "log_metric('a', float('nan'))": r"'mine' gave log_metric nan \(float\) for 'a'",
        "log_metric('a', '1')": r"'mine' gave log_metric '1' \(str\) for 'a'",
        "log_extra('a', [1])": "'mine' gave log_extra 1 values of 'a' for 2 completions",
        "log_extra(('a',), [1, 2])": r"with the name \('a',\)",
    }.items():
        with pytest.raises(UserError, match=message):
            run(what)


# Names of reward functions.


class Scorer:
    def __init__(self, name: Any = None) -> None:
        if name is not None:
            self.__name__ = name

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)


def same(completions: list[str], by: float = 1.0) -> list[float]:
    return [by] * len(completions)


def test_names_are_distinct_and_in_one_line(tmp_path: Path) -> None:
    for folder in ("a", "b\x1b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text("def mine(completions):\n    return [1.0] * len(completions)\n")
    functions = [
        f"{tmp_path}/a/own.py:mine",
        f"{tmp_path}/b\x1b/own.py:mine",
        lambda completions: [1.0] * len(completions),
        partial(same, by=2.0),
        partial(partial(same), by=3.0),
        Scorer(),
        Scorer("a/b\n\x1b[2J"),
        Scorer(""),
        Scorer(7),
        Scorer("mine_2"),
    ]
    rewards = Rewards(functions)
    assert rewards.names == [
        *("mine", "mine_2", "<lambda>", "same", "same_2", "Scorer", "a_b\\n\\x1b[2J", "unnamed", "7", "mine_2_2"),
    ]
    scores = rewards(["p"], ["c"], [[1]], {})
    assert scores.totals == [13.0] and list(scores.components) == rewards.names


def reward(completions: list[Any], log_metric: Any, log_extra: Any) -> list[float]:
    log_metric("words", 2)
    log_extra("prompt", [f"note {i}\ud800" for i in range(len(completions))])
    return [0.25 * (i % 2) for i in range(len(completions))]


def loss(completions: list[Any]) -> list[float]:
    return [1.0] * len(completions)


def test_a_run_with_names_that_records_have_too(tmp_path: Path) -> None:
    """Rewards named `reward` and `loss`, with weights, and a column named `prompt`: nothing is replaced."""
    settings = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 3, "max_steps": 2}
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2, "eval_temperature": 1.0}
    config = GRPOConfig(
        output_dir=str(tmp_path), reward_weights=[2.0, 3.0], beta=0.1, use_cpu=True, bf16=False, entropy_coef=0.01,
        learning_rate=1e-3, **settings, **evaluation,
    )  # fmt: skip
    rows = [{"prompt": f"{i}+{i}="} for i in range(4)]
    GRPOTrainer(
        small_model(vocab_size=22), [reward, loss], config, rows, rows[:2], processing_class=build_tokenizer()
    ).train()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    training = [row for row in records if "learning_rate" in row]
    held_out = [row for row in records if "eval/reward" in row]
    assert [row["reward"] for row in training] == [pytest.approx(3.25)] * 2
    assert [row["rewards/reward/mean"] for row in training] == [0.125] * 2
    assert [row["words"] for row in training] == [2.0] * 2
    for row in held_out:
        assert (row["eval/reward"], row["eval/rewards/reward"], row["eval/rewards/loss"]) == (3.25, 0.125, 1.0)
    completions = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    for row in completions:
        assert row["reward"] == 3.0 + 2 * row["rewards/reward"] and row["rewards/loss"] == 1.0
        assert row["prompt"].endswith("=") and row["extra"]["prompt"].startswith("note ")
        assert "\ud800" in row["extra"]["prompt"]
    # What a run writes beside the rewards' scores is taken, and its metrics cannot be logged.
    assert set(completions[0]) - {"rewards/reward", "rewards/loss"} <= TAKEN
    for name in {key for row in records for key in row} - {"words"}:
        with pytest.raises(UserError, match="which the run writes itself"):
            logged("log_metric", name, 1.0)


def test_a_name_that_is_free_stays() -> None:
    assert column_of("accuracy") == "accuracy" and column_of("step") == "rewards/step"
    assert "words" not in OWN_METRICS
