"""Runs that do not learn say so within five batches, with cause and remedy, once; healthy runs say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import GRPOConfig, PPOConfig, SFTTrainer
from cohort.config import METHOD_CONFIGS, OnlineConfig, SFTConfig
from cohort.data.chains import build_model, build_tokenizer, make_chains
from cohort.demo.small import grpo_config, sft_config
from cohort.rewards.compose import Rewards
from cohort.train.monitors.health import FEW, Health
from cohort.train.trainer import Trainer
from cohort.types import Completion, Group, Row
from helpers import StopAfter

DEMONSTRATIONS, TRAIN, _ = make_chains(2, 400, 8, seed=0)
ALL = [str(digit) for digit in range(10)]


def warnings_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "warnings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model after a short SFT on one operation: its answers are right at times. A healthy run."""
    folder = tmp_path_factory.mktemp("health")
    tokenizer = build_tokenizer()
    build_model(tokenizer, 0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = sft_config(folder / "sft", 0).model_copy(update={"max_steps": 60, "use_cpu": True, "bf16": False})
    SFTTrainer(str(folder / "base"), config, DEMONSTRATIONS).train()
    return folder / "sft"


def run(
    start: Path,
    folder: Path,
    rewards: Any = ("accuracy", "format", "overlong"),
    rows: Any = TRAIN,
    resume: bool = False,
    **values: Any,
) -> Trainer:
    """A run at the demo's settings, with fewer completions."""
    method = values.pop("method", "grpo")
    demo = grpo_config(folder, 0).model_dump(include={"learning_rate", "lr_scheduler_type", "adam_beta2",
                                                       "num_generations", "beta", "entropy_coef",
                                                       "max_completion_length"})  # fmt: skip
    if method in ("ppo", "online_rft"):
        demo.pop("beta")
    quick = {"per_device_train_batch_size": 32, "max_steps": 5, "use_cpu": True, "bf16": False}
    quick |= {"output_dir": str(folder), "reward_preflight": False}
    callbacks = values.pop("callbacks", ())
    config = METHOD_CONFIGS[method](**{**demo, **quick, **values})
    rewards = list(rewards) if isinstance(rewards, tuple) else rewards
    trainer = Trainer(str(start), rewards, config, rows, method=method, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def last_digit(completions: list[Any], **_: Any) -> list[float]:
    """Differs between the completions of a prompt, at a scale that leaves others no part."""
    texts = [completion[0]["content"] for completion in completions]
    return [30.0 * int(([c for c in text if c.isdigit()] or ["0"])[-1]) for text in texts]


def small(completions: list[Any], **_: Any) -> list[float]:
    return [value / 300 for value in last_digit(completions)]


def constant(completions: list[Any], **_: Any) -> list[float]:
    return [0.3] * len(completions)


def by_prompt(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    return [int(a) / 10 + 0.1 for a in answer]


WRONG = {"rows": [{**row, "answer": "77"} for row in TRAIN], "rewards": ("accuracy",)}
EASY = {"rows": [{**row, "answer": ALL} for row in TRAIN], "rewards": ("accuracy",), "seed": 1}
SLOW = {"learning_rate": 1e-6}
SICK: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "greedy": ({"temperature": 0.01}, 3, ["no gradient", "identical completions", "temperature: 0.01", "Set temp"]),
    "top_k": ({"top_k": 1}, 3, ["no gradient", "identical completions", "because of top_k: 1"]),
    "impossible": (WRONG, 3, ["no gradient", "no completion is right", "gets '", "beside the reference '77'"]),
    "trivial": (EASY, 5, ["too easy", "ake harder"]),
    "too short": ({"max_completion_length": 4}, 3, ["end at max_completion_length: 4", "Raise it"]),
    "fast": ({"learning_rate": 10.0}, 1, ["moved its own batch by", "learning_rate 10 is too high"]),
    "lora": ({"finetuning_type": "lora", "learning_rate": 10.0}, 1, ["learning_rate 10 is too high"]),
    "constant": ({"rewards": constant}, 3, ["no gradient", "every completion has the reward 0.3"]),
    "by prompt": ({"rewards": by_prompt}, 3, ["differ between prompts", "never between completions"]),
    "dominated": (
        {"rewards": ["accuracy", last_digit], "reward_clip": None, **SLOW},
        5,
        ["reward last_digit has made at least 90% of the spread", "with weight 1", "lower its weight"],
    ),
    "silent": ({**WRONG, "rewards": ["accuracy", small], **SLOW}, 5, ["reward accuracy has been 0", "never fires"]),
    "form": ({"rewards": ("format", "overlong"), "max_steps": 1}, 1, ["look at the form alone", "such as accuracy"]),
    "far": (
        {"learning_rate": 3e-2, "beta": 1e-6},
        5,
        ["the KL to the reference is", "beta, now 1e-06"],
    ),
    "ppo": ({**WRONG, "method": "ppo", "num_ppo_epochs": 1, "num_mini_batches": 1}, 3, ["no completion is right"]),
    "online_rft": ({**WRONG, "method": "online_rft"}, 3, ["no completion is right"]),
    "below": (
        {"method": "online_rft", "rewards": small, "reward_threshold": 50.0},
        3,
        ["no gradient", "reward_threshold 50", "the best reward is"],
    ),
    "one prompt": ({**WRONG, "per_device_train_batch_size": 8}, FEW, ["no completion is right"]),
    "process": (
        {"method": "grpo_process", "rewards": ["chain_steps"], "top_k": 1},
        3,
        ["identical completions in 100% of the groups", "because of top_k: 1"],
    ),
}


@pytest.mark.parametrize("name", SICK)
def test_a_sick_run_says_so_in_time_and_once(start: Path, tmp_path: Path, name: str) -> None:
    settings, step, said = SICK[name]
    run(start, tmp_path, **settings)
    rows = warnings_of(tmp_path)
    assert len({row["name"] for row in rows}) == len(rows), "each once"
    found = [row for row in rows if all(part in row["message"] for part in said)]
    assert len(found) == 1, rows
    assert found[0]["step"] <= step and found[0]["message"].startswith(f"step {found[0]['step']}: ")


HEALTHY: dict[str, dict[str, Any]] = {
    "demo": {"max_steps": 15, "per_device_train_batch_size": 64},
    "lora": {"finetuning_type": "lora", "learning_rate": 1e-3, "max_steps": 12},
    "kl": {"beta": 0.04, "num_iterations": 2, "max_steps": 10},
    "few prompts": {"per_device_train_batch_size": 16, "max_steps": 15},
    "ppo": {"method": "ppo", "max_steps": 8},
}


@pytest.mark.parametrize("name", [pytest.param("demo", marks=pytest.mark.slow), *list(HEALTHY)[1:]])
def test_a_healthy_run_says_nothing(start: Path, tmp_path: Path, name: str) -> None:
    run(start, tmp_path, **HEALTHY[name])
    assert not (tmp_path / "warnings.jsonl").exists(), (tmp_path / "warnings.jsonl").read_text()
    assert not (start / "warnings.jsonl").exists(), "the SFT"


def group(rewards: list[float], ids: list[int] | None = None) -> Group:
    """Completions of one token with advantages as of their distance from the mean."""
    completions = [Completion(torch.tensor([i]), torch.zeros(1), text=f"<{i}>") for i in ids or range(len(rewards))]
    mean = sum(rewards) / len(rewards)
    advantages = [torch.tensor([reward - mean]) for reward in rewards]
    answer = Row("2+2=", columns={"answer": "4"})
    return Group(torch.tensor([1]), completions, answer, rewards, {"mine": list(rewards)}, advantages=advantages)


def mine(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def monitor(config: OnlineConfig | None = None) -> Health:
    return Health(config or GRPOConfig(num_generations=2), None, Rewards([mine]))


UNEVEN, EQUAL = group([0.0, 1.0]), group([1.0, 1.0])


def test_batches_of_one_group_are_often_equal_by_chance() -> None:
    """Of 12 batches 4 taught nothing, the last of them begins a row: nine have the chance (4 / 13)^9 = 2e-5, seven
    that of 3e-4."""
    health = monitor()
    for batch, teaches in enumerate([True, True, False] * 4):
        health.see([UNEVEN if teaches else EQUAL], batch + 1)
    for batch in range(8):
        health.see([EQUAL], 13 + batch)
        assert ("solved" in health.told.names) is (batch + 2 >= 8), batch  # (4 / 13)^8 = 8e-5
    assert "no gradient" not in health.told.names, "all have the highest reward: the task was learned"


def test_a_reward_that_falls_is_told_by_four_standard_errors(caplog: pytest.LogCaptureFixture) -> None:
    """The squared changes of batch means sum to .12 in each window and .04 between the two: a variance of .28 / 30. The
    standard error of the difference of two windows of 8 is sqrt(2 * .28 / 30 / 8) = .048, four of them are .19."""
    steady = [0.5, 0.6, 0.4, 0.5, 0.5, 0.6, 0.4, 0.5]
    for fall, told in ((0.1, False), (0.2, True)):
        health = monitor()
        for step, mean in enumerate([*steady, *[mean - fall for mean in steady]], 1):
            health.see([group([mean - 0.2, mean + 0.2]) for _ in range(8)], step)
        assert ("reward fell" in health.told.names) is told
    assert "step 16: the mean reward of the last 8 batches, 0.3, is below that of the first 8, 0.5" in caplog.text


ROW = {"step": 1, "entropy": 1.0, "kl": 0.1, "kl/update": 0.01}


def test_entropy_that_collapses_is_told_unless_the_task_is_solved() -> None:
    for right, told in ((1, ["entropy"]), (12, [])):
        health = monitor()
        for step in range(1, 8):
            health.see([group([1.0] * right + [0.0])], step)
            health.see_step({**ROW, "step": step, "entropy": 1.0 if step < 4 else 0.05})
            assert health.told.names == (told if step >= 6 else []), step
    health = monitor()
    for step in range(1, 9):  # the demo's, with its tenth of a nat
        health.see_step({**ROW, "step": step, "entropy": 0.063 if step < 4 else 0.017})
    assert health.told.names == []


def test_a_loss_of_imitation_that_diverges(caplog: pytest.LogCaptureFixture) -> None:
    health = Health(SFTConfig())
    for step, loss in enumerate([2.0, 3.9, 2.5, 4.5, 5.0, 9.0], 1):
        health.see_step({"step": step, "loss": loss})
    assert caplog.messages[0].startswith("step 5: the loss is 5, and was 2 at the first step: learning_rate")
    assert len(caplog.messages) == 1
    of_samples = monitor(PPOConfig())
    for step, loss in enumerate([0.001, 3.0, 5.0], 1):  # the loss of samples says nothing
        of_samples.see_step({"step": step, "loss": loss})
    assert of_samples.told.names == []


def test_a_completion_in_a_message_is_short_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    long = group([0.0, 0.0])
    for completion in long.completions:
        completion.text = "\x1b[31m" + "a" * 500 + "\nend"
    health = monitor()
    for step in range(1, 4):
        health.see([long, long], step)
    (message,) = caplog.messages
    assert "\x1b" not in message and "\\x1b[31maaa" in message and "aaa\\nend' beside the reference '4'" in message
    assert len(message) < 700


def test_a_warning_is_not_repeated_by_a_resumed_run(start: Path, tmp_path: Path) -> None:
    settings = {**WRONG, "save_steps": 1}
    run(start, tmp_path, max_steps=6, callbacks=[StopAfter(4)], **settings)
    before = warnings_of(tmp_path)
    assert [(row["name"], row["step"]) for row in before] == [("no gradient", 3)]
    assert json.loads((tmp_path / "ended.json").read_text()) == {"step": 4, "max_steps": 6, "by": "StopAfter"}
    again = run(start, tmp_path, max_steps=6, resume=True, **settings)
    assert warnings_of(tmp_path) == before and again.health.batches == 6
    assert json.loads((tmp_path / "ended.json").read_text()) == {"step": 6, "max_steps": 6, "by": "max_steps"}
    run(start, tmp_path, max_steps=1)
    assert warnings_of(tmp_path) == [] and warnings_of(tmp_path / "earlier-1") == before


def test_entropy_is_that_of_all_sampled_tokens(start: Path, tmp_path: Path) -> None:
    """Where no group has spread the pass is empty: the entropy is the sampler's estimate, near the exact one."""
    run(start, tmp_path / "flat", rewards=constant, max_steps=1, entropy_coef=0.0, per_device_train_batch_size=128)
    run(start, tmp_path / "all", rewards=constant, max_steps=1, entropy_coef=1e-9, per_device_train_batch_size=128)
    flat, every = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["entropy"]
        for name in ("flat", "all")
    )
    assert every > 0 and flat == pytest.approx(every, rel=0.15)
