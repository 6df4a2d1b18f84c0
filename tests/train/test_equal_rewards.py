"""Runs whose rewards are all equal: nothing is learned, also where the KL is in the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import PPOConfig
from cohort.config import ReinforceConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.policy.reference import reference_of
from cohort.train.critic import explained_variance
from cohort.train.trainer import Trainer
from helpers import random_groups, rows_of, small_model, small_policy

_, TRAIN, _ = make_chains(2, 8, 8, seed=0)
QUICK: dict[str, Any] = {
    "learning_rate": 1e-2,
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "max_completion_length": 6,
    "max_steps": 2,
    "use_cpu": True,
    "bf16": False,
    "reward_preflight": False,
}


def always(completions: list[Any], **_: Any) -> list[float]:
    return [0.3] * len(completions)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize(
    ("method", "config", "values"),
    [
        ("reinforce++", ReinforceConfig, {"beta": 0.04}),
        ("reinforce++", ReinforceConfig, {"beta": 0.0}),
        ("ppo", PPOConfig, {"lam": 1.0}),
    ],
    ids=["kl", "no kl", "critic"],
)
def test_equal_rewards_move_nothing(tmp_path: Path, method: str, config: Any, values: Any, tuning: str) -> None:
    args = config(**{**QUICK, **values, "output_dir": str(tmp_path), "finetuning_type": tuning})
    trainer = Trainer(
        small_model(vocab_size=22), always, args, TRAIN, processing_class=build_tokenizer(), method=method
    )
    before = [parameter.detach().clone() for parameter in trainer.policy.parameters]
    trainer.train()
    assert [row["grad_norm"] for row in rows_of(tmp_path)] == [0.0, 0.0]
    for a, b in zip(trainer.policy.parameters, before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_reference_knows_whether_it_is_the_policy(tuning: Any) -> None:
    policy = small_policy(config=ReinforceConfig(**{**QUICK, "finetuning_type": tuning}))
    reference = reference_of(policy)
    assert reference.is_policy()
    last = policy.parameters[-1]  # with LoRA, a B
    with torch.no_grad():
        last[0] += 1.0
    assert not reference.is_policy()
    reference.follow()
    assert reference.is_policy()
    with torch.no_grad():
        last[0] += 1.0
    assert not reference.is_policy()


def test_returns_that_differ_by_rounding_leave_nothing_to_explain() -> None:
    groups = random_groups([(5, [4, 7, 1])])
    config = PPOConfig(**QUICK, lam=1.0)
    for group in groups:
        group.rewards, group.values = [0.3] * 3, [torch.full((len(c.ids),), 0.1) for c in group.completions]
        group.values[0][0] += 3e-8
    assert explained_variance(groups, config) == 0.0
