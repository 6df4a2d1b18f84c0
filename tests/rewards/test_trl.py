"""The rewards of `trl.rewards`: the scores in this file are those of TRL 1.16 itself."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from cohort import GRPOConfig, GRPOTrainer
from cohort.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)
from cohort.rewards.answers.verify import Worker
from cohort.rewards.functions import trl
from cohort.types import UserError

ACCURACY = [
    (r"My answer is \boxed{\frac{1}{3}}", r"\frac{1}{3}", 1.0),
    (r"My answer is \boxed{\frac{1}{2}}", r"\frac{1}{3}", 0.0),
    ("#### 72", "72", 0.0),
    ("it is $72$.", "#### 72", 0.0),
    ("the final answer is $72$", "\\boxed{72}", 1.0),
    (r"$7$ then \boxed{72}", "72", 1.0),
    (r"\boxed{72} or \boxed{7}", "72", 0.0),
    (r"\boxed{72 \text{ dollars}}", "$72$", 1.0),
    (r"\boxed{1+x^2}", "$x^2+1$", 1.0),
    (r"\boxed{2,1}", r"$\{1,2\}$", 1.0),
    ("", "72", 0.0),
    (r"\boxed{72}", "no number", None),
]


def test_accuracy_reward() -> None:
    logged: dict[str, list[Any]] = {}
    texts, solution, scores = zip(*ACCURACY, strict=True)
    assert accuracy_reward(texts, list(solution), log_extra=logged.__setitem__) == list(scores)
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert accuracy_reward(completions=messages, solution=list(solution), prompts=[]) == list(scores)
    assert logged["solution"] == list(solution) and logged["gold_parsed"][-1] == "[unparseable]"
    assert (logged["answer_parsed"][0], logged["answer_parsed"][-1]) == ("[1/3, '\\\\frac{1}{3}']", "[skipped]")
    assert accuracy_reward([r"\boxed{7}", r"\boxed{7}"], [None, 7]) == [None, 1.0]


def test_reasoning_accuracy_reward() -> None:
    texts = [
        r"<think> a </think> The answer is \boxed{\frac{1}{3}}",
        r"<think> a </think> The answer is \boxed{\frac{1}{2}}",
        r"<think> partly \boxed{\frac{1}{3}}",
        r"\boxed{7}</think>\boxed{7}</think>\boxed{\frac{1}{3}}",
        r"\boxed{\frac{1}{3}}</think>",
    ]
    assert reasoning_accuracy_reward(texts, [r"\frac{1}{3}"] * 5) == [1.0, 0.0, 0.0, 1.0, 0.0]
    # The delimiter that is named first counts, wherever it stands.
    for marks, score in ((["no", "</think>"], 0.0), (["</think>", "no"], 1.0)):
        assert reasoning_accuracy_reward([r"no</think>\boxed{7}no"], ["7"], reasoning_delimiters=marks) == [score]
    assert reasoning_accuracy_reward([r"</think>$7$"], ["no number"]) == [None]
    assert reasoning_accuracy_reward(["$7$"], ["no number"]) == [0.0]
    with pytest.raises(UserError, match="reasoning_delimiters"):
        reasoning_accuracy_reward(["$7$"], ["7"], reasoning_delimiters=[""])


def test_think_format_reward() -> None:
    texts = {
        "<think>\na\n</think>\nb": 1,
        "<think>\na\nb": 0,
        "<think></think>": 1,
        " <think>a</think>": 0,
        "<think>a<think>b</think>": 0,
        "<think>a</think><think>": 0,
        "<think>a</think></think>": 1,
        "</think><think>": 0,
        "": 0,
    }
    assert think_format_reward(list(texts)) == list(texts.values())
    assert think_format_reward([[{"role": "assistant", "content": "<think>a</think>b"}]]) == [1.0]


def test_rewards_of_length() -> None:
    def ids(*lengths: int) -> list[list[int]]:
        return [[1] * length for length in lengths]

    cosine = get_cosine_scaled_reward(max_len=100)
    texts, solution = [r"\boxed{1}", r"\boxed{2}", r"\boxed{1}", r"\boxed{2}", r"\boxed{1}"], ["1"] * 4 + ["none"]
    assert cosine(texts, solution, ids(50, 50, 0, 300, 1)) == [0.75, -0.75, 1.0, -0.5, None]
    overlong = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert overlong(ids(80, 90, 99, 100, 101)) == [0.0, -0.5, -0.95, -1.0, -1.0]
    assert get_soft_overlong_punishment(100, 0)(completion_ids=ids(100, 101)) == [0.0, -1.0]
    repeats = get_repetition_penalty_reward(ngram_size=2)
    assert repeats([[1, 2, 3, 4], [5] * 5, [1], []]) == [0.0, -0.75, 0.0, 0.0]
    assert get_repetition_penalty_reward(3, -2.0)(completion_ids=[[1, 2, 1, 2, 1, 2]], prompts=[""]) == [-1.0]
    names = [function.__name__ for function in (cosine, overlong, repeats)]
    assert names == ["cosine_scaled_reward", "soft_overlong_punishment_reward", "repetition_penalty_reward"]
    assert pickle.loads(pickle.dumps([cosine, overlong, repeats])) == [cosine, overlong, repeats]


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (get_cosine_scaled_reward, (0,)),
        (get_repetition_penalty_reward, (3, 0.5)),
        (get_repetition_penalty_reward, (0,)),
        (get_soft_overlong_punishment, (100, 101)),
        (get_soft_overlong_punishment, (100, -1)),
    ],
)
def test_impossible_options_are_refused(make: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match=r"is (0|0.5|101|-1)[:;]"):
        make(*arguments)


def test_hostile_completions_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "_judge", Worker("trl", seconds=1.0))
    hostile = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{" * 3000, "$" * 20000, r"\boxed{" + "(" * 3000, "<think>" * 20000]
    assert accuracy_reward([*hostile, r"\boxed{7}"], ["7"] * 6) == [0.0] * 5 + [1.0]
    assert think_format_reward(["<think>" * 200_000, "<think>" + "</think" * 200_000]) == [0.0, 0.0]
    trl._judge.close()


def test_a_run_with_them(model: str, tmp_path: Path) -> None:
    functions = [
        accuracy_reward,
        reasoning_accuracy_reward,
        think_format_reward,
        get_cosine_scaled_reward(16),
        get_repetition_penalty_reward(),
        get_soft_overlong_punishment(8, 4),
    ]
    args = GRPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, num_generations=2, max_completion_length=8,
        report_to="none", use_cpu=True,
    )  # fmt: skip
    rows = [{"prompt": "1+1=", "solution": "2"}] * 2
    trainer = GRPOTrainer(model, functions, args, rows)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "reward" in row)
    names = ["accuracy_reward", "think_format_reward", "cosine_scaled_reward", "soft_overlong_punishment_reward"]
    assert all(f"rewards/{name}/mean" in row for name in names)
