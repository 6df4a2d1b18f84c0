"""What a run records: whole groups, the history of rows, where a completion comes from."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import DPOConfig, GRPOConfig, SFTConfig, Trainer
from cohort.data.chains import build_tokenizer, make_chains
from cohort.methods.table import METHODS
from cohort.policy.packed.pack import Part
from cohort.rewards import RewardFunctionError
from cohort.rewards.compose import Rewards
from cohort.train.output.group_record import About, _listed, last_turn, row_line, significant, token_texts
from cohort.train.output.record import Recorder
from cohort.types import Completion, Group, Row
from helpers import StopAfter, byte_tokenizer, digits, small_model

DEMONSTRATIONS, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "1"} for row in DEMONSTRATIONS]
SMALL = {
    "num_generations": 4,
    "per_device_train_batch_size": 12,
    "max_completion_length": 6,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "bf16": False,
}


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").split("\n") if line]


def trained(folder: Path, rewards: Any = digits, method: str = "grpo", resume: bool = False, **values: Any) -> Trainer:
    data = values.pop("train_dataset", {"sft": DEMONSTRATIONS, "dpo": PAIRS}.get(method, TRAIN))
    given = {key: values.pop(key) for key in ("callbacks", "eval_dataset") if key in values}
    kind = {"sft": SFTConfig, "dpo": DPOConfig}.get(method, METHODS[method].config)
    settings = {key: value for key, value in {**SMALL, **values}.items() if key in kind.model_fields}
    if method == "dpo":  # nothing is sampled
        settings = {key: value for key, value in settings.items() if key not in ("num_generations", "beta")}
    config = kind(output_dir=str(folder), **settings)
    model = small_model(vocab_size=22)
    trainer = Trainer(model, rewards, config, data, processing_class=build_tokenizer(), method=method, **given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Batches:
    """Keeps each step's batch, and the policy's log-probabilities of it after the update."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[Group], dict[tuple[int, int], torch.Tensor]]] = []
        self.trainer: Trainer | None = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        groups = self.trainer.loop.progress.batch or []
        rows = [range(len(group.completions)) for group in groups]
        parts = [
            Part(g, group.prompt_ids, each, [c.ids for c in group.completions])
            for g, (group, each) in enumerate(zip(groups, rows, strict=True))
        ]
        self.steps.append((groups, self.trainer.policy.logprobs([parts], 1.0) if parts else {}))


def test_a_whole_group_of_each_batch_is_recorded(tmp_path: Path) -> None:
    batches = Batches()
    config = GRPOConfig(output_dir=str(tmp_path), **SMALL, num_iterations=2, reward_preflight=False)
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    batches.trainer = Trainer(model, digits, config, TRAIN, processing_class=tokenizer, callbacks=[batches])
    batches.trainer.train()
    recorded = read(tmp_path, "groups.jsonl")
    assert [line["step"] for line in recorded] == [1, 3]  # each batch is used for two steps
    groups, after = batches.steps[0]
    line, g = recorded[0], recorded[0]["group"]
    uneven = [i for i, group in enumerate(groups) if len(set(group.rewards)) > 1]
    assert g == uneven[0]
    group = groups[g]
    assert line["row"] == group.row.number and TRAIN[line["row"]]["answer"] == line["columns"]["answer"]
    assert line["prompt"] == group.row.prompt
    for i, (written, completion) in enumerate(zip(line["completions"], group.completions, strict=True)):
        n = len(completion.ids)
        assert written["index"] == i and written["truncated"] == completion.truncated
        assert "".join(written["tokens"]) == written["text"] == completion.text and len(written["tokens"]) == n
        assert written["reward"] == written["components"]["digits"] == pytest.approx(group.rewards[i], rel=1e-3)
        assert written["advantages"] == pytest.approx(float(group.advantages[i][0]), rel=1e-3)
        assert written["logprobs"] == pytest.approx(completion.logprobs.tolist(), rel=1e-3, abs=1e-5)
        assert written["reference_logprobs"] == pytest.approx(completion.logprobs.tolist(), rel=1e-3, abs=1e-5)
        assert len(written["entropies"]) == n and all(0 < x <= math.log(22) + 1e-3 for x in written["entropies"])
        moved = [a + b for a, b in zip(written["logprobs"], written["changes"], strict=True)]
        assert moved == pytest.approx(after[g, i].tolist(), rel=2e-3, abs=2e-3)
        assert "steps" not in written


def test_entropies_are_those_of_the_policy_before_the_update(tmp_path: Path) -> None:
    """The mean over a batch of one group is the step's metric."""
    trained(tmp_path, per_device_train_batch_size=4, max_steps=1)
    (line,) = read(tmp_path, "groups.jsonl")
    every = [x for completion in line["completions"] for x in completion["entropies"]]
    assert sum(every) / len(every) == pytest.approx(read(tmp_path, "metrics.jsonl")[0]["entropy"], rel=1e-3)


def test_completions_and_rows_say_where_they_come_from(tmp_path: Path) -> None:
    trained(tmp_path, rewards=[digits, "format"])
    history = read(tmp_path, "rows.jsonl")
    assert [(line["step"], line["group"]) for line in history] == [(s, g) for s in (1, 2, 3, 4) for g in (0, 1, 2)]
    seen: set[int] = set()
    for line in history:
        assert ("prompt" in line) == (line["row"] not in seen)
        if "prompt" in line:
            assert line["prompt"] == last_turn(TRAIN[line["row"]]["prompt"])
        seen.add(line["row"])
        assert line["n"] == len(line["rewards"]) == 4
        assert line["mean"] == pytest.approx(sum(line["rewards"]) / 4, rel=2e-3)
        assert line["right"] == sum(reward > 0 for reward in line["rewards"])  # `format` is never given here
    by_place = {(line["step"], line["group"]): line for line in history}
    for row in read(tmp_path, "completions.jsonl"):
        visit = by_place[row["step"], row["group"]]
        assert row["row"] == visit["row"]
        assert significant(row["reward"]) == visit["rewards"][row["index"]]


def test_a_resumed_run_writes_the_same_lines(tmp_path: Path) -> None:
    """The checkpoint lies inside a batch of two parts, each used twice."""
    settings = {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 9, "logged_groups": 2, "beta": 0.04}
    settings |= {"eval_dataset": HELD_OUT, "eval_strategy": "steps", "eval_steps": 2}
    trained(tmp_path / "whole", **settings)
    trained(tmp_path / "cut", **settings, save_steps=6, callbacks=[StopAfter(8)])
    trained(tmp_path / "cut", **settings, resume=True)
    for name in ("groups.jsonl", "rows.jsonl", "completions.jsonl", "held_out.jsonl"):
        assert read(tmp_path / "cut", name) == read(tmp_path / "whole", name), name
    assert [line["step"] for line in read(tmp_path / "whole", "groups.jsonl")] == [1, 1, 5, 5, 9, 9]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_groups_of_data_are_recorded(tmp_path: Path, method: str) -> None:
    trained(tmp_path, None, method, per_device_train_batch_size=3, max_steps=2)
    data = {"sft": DEMONSTRATIONS, "dpo": PAIRS}[method]
    for line in read(tmp_path, "groups.jsonl"):
        for i, completion in enumerate(line["completions"]):
            expected = data[line["row"]]["completion" if method == "sft" else ("chosen", "rejected")[i]]
            text = expected if isinstance(expected, str) else expected[-1]["content"]
            assert completion["text"].startswith(text) and "".join(completion["tokens"]) == completion["text"]
            assert max(completion["logprobs"]) < 0 and "reward" not in completion and completion["components"] == {}
    assert [set(line) - {"prompt"} for line in read(tmp_path, "rows.jsonl")] == [{"step", "row", "group", "n"}] * 6


def test_no_group_is_recorded_where_none_is_asked_for(tmp_path: Path) -> None:
    trained(tmp_path, max_steps=1, logged_groups=0)
    assert not (tmp_path / "groups.jsonl").exists() and read(tmp_path, "rows.jsonl")


def test_groups_that_dynamic_sampling_drops_are_visits_too(tmp_path: Path) -> None:
    def seldom(completions: list[Any], **_: Any) -> list[float]:
        return [float(completion[0]["content"][:1].isdigit()) for completion in completions]

    trained(tmp_path, seldom, dynamic_sampling=True, max_steps=1, num_generations=2, per_device_train_batch_size=8)
    history = read(tmp_path, "rows.jsonl")
    dropped = [line for line in history if line["group"] is None]
    assert [line["group"] for line in history if line["group"] is not None] == [0, 1, 2, 3]
    assert dropped and all(line["right"] in (0, 2) for line in dropped)


def group_of(components: dict[str, list[float | None]], rewards: list[float]) -> Group:
    completions = [Completion(torch.tensor([1]), torch.zeros(1)) for _ in rewards]
    return Group(torch.tensor([1]), completions, Row("?", number=5), rewards, components)


def test_right_is_what_the_first_rule_of_the_answer_says() -> None:
    def own(completions: list[Any], **_: Any) -> list[float]:
        return [0.0 for _ in completions]

    about = About("grpo", "m", None, Rewards(["format", "accuracy", own]))
    assert about.rules() == ["accuracy", "own"]
    group = group_of({"format": [1.0, 1.0], "accuracy": [0.0, 1.0], "own": [1.0, 1.0]}, [1.0, 2.0])
    assert row_line(3, 0, group, about.rules())["right"] == 1
    elsewhere = group_of({"format": [1.0, 1.0], "accuracy": [None, None], "own": [1.0, 1.0]}, [1.0, 2.0])
    assert row_line(3, 0, elsewhere, about.rules())["right"] == 2  # accuracy does not apply to this row
    assert About("grpo", "m", None, Rewards(["format"])).rules() == ["format"]
    alone = group_of({"format": [1.0, 0.0]}, [-1.0, 0.0])
    assert row_line(3, 0, alone, ["format"]) == {
        "step": 3, "row": 5, "group": 0, "n": 2, "right": 0, "mean": -0.5, "rewards": [-1.0, 0.0]
    }  # fmt: skip


def test_numbers_have_four_digits() -> None:
    values = (0.1234567, -1234567.0, 1e-9, 0.0, 2.0, 99999.0, -0.00012346)
    assert (
        [significant(x) for x in values]
        == _listed(torch.tensor(values, dtype=torch.float64))
        == [0.1235, -1235000.0, 1e-9, 0.0, 2.0, 100000.0, -0.0001235]
    )
    assert significant(math.nan) is significant(math.inf) is significant(None) is None
    assert _listed(torch.tensor([math.nan, 1.0, -math.inf])) == [None, 1.0, None]


class Pieces:
    """A tokenizer that decodes each token alone as given."""

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def decode(self, ids: list[int]) -> str:
        return self.pieces[ids[0]]


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (["The", " cat", "<eos>"], "The cat", ["The", " cat", ""]),
        (["The", "cat"], "The cat", ["The", " cat"]),  # the space of a first token is left out
        (["a", "\ufffd", "\ufffd", "b"], "a\u00e9b", ["a", "", "\u00e9", "b"]),
        (["\ufffd", "\ufffd", "<eos>"], "\u00e9", ["", "\u00e9", ""]),
        ([" \ufffd", "\ufffd", " b"], " \u00e9 b", ["", " \u00e9", " b"]),
        (["x", "y"], "other", ["x", "y"]),
    ],
)
def test_token_texts_join_to_the_text(pieces: list[str], text: str, expected: list[str]) -> None:
    about = About("grpo", "m", Pieces(*pieces))
    assert token_texts(list(range(len(pieces))), text, about) == expected


def test_token_texts_of_bytes() -> None:
    tokenizer, text = byte_tokenizer(), "né 中 🙂 x"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(ids, text, About("grpo", "m", tokenizer))
    assert "".join(texts) == text and len(texts) == len(ids) and "🙂" in texts


def flat(completions: list[Any], **_: Any) -> list[float]:
    return [0.5 for _ in completions]


def test_warnings_name_the_rows_that_caused_them(tmp_path: Path) -> None:
    """Completions that end at the limit, and groups whose rewards are equal; each once, with the batch's rows."""
    values = {"max_steps": 3, "reward_preflight": False, "max_completion_length": 2, "learning_rate": 0.0}
    trained(tmp_path, flat, per_device_train_batch_size=24, **values)
    warnings = {row["name"]: row for row in read(tmp_path, "warnings.jsonl")}
    of_last = [line["row"] for line in read(tmp_path, "rows.jsonl") if line["step"] == 3]
    assert warnings["no gradient"]["step"] == 3 and warnings["no gradient"]["rows"] == sorted(of_last)
    cut = warnings["truncated"]["rows"]
    assert cut and cut == sorted(cut) and set(cut) <= set(of_last)


@pytest.mark.parametrize(
    ("method", "key"), [("grpo", "max_prompt_length"), ("sft", "max_length"), ("dpo", "max_length")]
)
def test_rows_that_are_too_long_are_told_in_the_run(tmp_path: Path, method: str, key: str) -> None:
    """They are found before the run begins, and are rows of its step 0, once even where it is resumed."""
    long = {"prompt": "1+1+1+1+1+1+1+1+1=", "completion": "9" * 40, "chosen": "9" * 40, "rejected": "8" * 40}
    data = {"sft": DEMONSTRATIONS, "dpo": PAIRS}.get(method, TRAIN)
    rows = [*data[:2], long, *data[2:], long]
    limit = 12 if method == "grpo" else 45
    settings = {key: limit, "max_steps": 2, "save_steps": 1, "save_total_limit": None, "train_dataset": rows}
    settings["truncation"] = "drop"
    trained(tmp_path, None if method != "grpo" else digits, method, **settings)
    (warning,) = [row for row in read(tmp_path, "warnings.jsonl") if row["name"] == "too long"]
    assert (warning["step"], warning["rows"]) == (0, [2, len(rows) - 1])
    assert f"2 of {len(rows)} " in warning["message"] and "are dropped" in warning["message"]
    visited = {line["row"] for line in read(tmp_path, "rows.jsonl")}
    assert visited and not visited & {2, len(rows) - 1}
    trained(tmp_path, None if method != "grpo" else digits, method, resume=True, **{**settings, "max_steps": 3})
    assert [row["step"] for row in read(tmp_path, "warnings.jsonl") if row["name"] == "too long"] == [0]


def test_a_reward_that_raises_is_in_the_warnings_with_its_row(tmp_path: Path) -> None:
    def breaks(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
        if TRAIN[7]["prompt"] in prompts:
            raise KeyError("no such thing")
        return [0.0 for _ in completions]

    with pytest.raises(RewardFunctionError):
        trained(tmp_path, breaks, shuffle_dataset=False, max_steps=9, reward_preflight=False)
    last = read(tmp_path, "warnings.jsonl")[-1]
    assert (last["step"], last["name"], last["rows"]) == (3, "RewardFunctionError", [7])
    assert "reward function 'breaks' raised KeyError" in last["message"]
    assert json.loads((tmp_path / "ended.json").read_text())["by"] == "RewardFunctionError"


def test_the_settings_are_recorded_without_secrets(tmp_path: Path) -> None:
    config = GRPOConfig(
        str(tmp_path), **{**SMALL, "max_steps": 7}, model_init_kwargs={"token": "hf_x", "dtype": "auto"}
    )
    recorder = Recorder(tmp_path, about=About("grpo", "m", None, Rewards([{"name": digits, "weight": 2}])))
    recorder.start(0)
    recorder.settings(config)
    written = json.loads((tmp_path / "settings.json").read_text())
    assert (written["method"], written["model"], written["rewards"]) == ("grpo", "m", {"digits": 2.0})
    assert written["max_steps"] == 7 and written["token_budget"] == 16384 and "hf_x" not in str(written)
    assert set(GRPOConfig.model_fields) <= set(written)


def test_a_script_still_prints_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are kept while a trainer is made, and the logger gets no handler that a program did not set."""
    logger = logging.getLogger("cohort")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    config = GRPOConfig(str(tmp_path), **SMALL)
    Trainer(small_model(vocab_size=22), digits, config, TRAIN, processing_class=build_tokenizer())
    assert [type(handler).__name__ for handler in logger.handlers] == ["LogLines"]
    assert "see" not in [getattr(each, "__name__", "") for each in logger.filters]
