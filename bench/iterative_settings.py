"""Sizes and settings of iterative.py: the problems and steps of a seed, reward models, refits and policies."""

from __future__ import annotations

from dataclasses import dataclass

LENGTH = 32
SAMPLES, ROLLOUTS = 8, 8
ITERATIONS = 3
PARTS = ("outcome", "few", "few-refit", "refit", "process", "rules")
RULES = ["accuracy", "format", "overlong"]


@dataclass(frozen=True)
class Size:
    """Problems and steps of one seed."""

    many: int = 6000
    """Problems whose samples (twice SAMPLES each) train the outcome model. Many are needed: half of its mistakes are on
    errors that are rare in the samples."""
    few: int = 600
    stepwise: int = 6000
    """Problems whose samples (two each) get Monte Carlo labels. With few problems a process model memorises them
    instead of learning to judge steps."""
    held_out: int = 300
    judging: int = 200
    """Problems that reward models are evaluated on."""
    sft: int = 300
    outcome: int = 5000
    on_few: int = 500
    process: int = 1000
    policy: int = 60
    on_model: int = 90
    """Steps of a policy that an outcome model rewards: enough for over-optimisation to show."""


QUICK = Size(
    many=16, few=4, stepwise=4, held_out=8, judging=8, sft=6, outcome=3, on_few=3, process=3, policy=6, on_model=6
)
"""Sizes for a quick check that everything runs."""

REWARD_MODEL = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "adam_beta2": 0.98}
OUTCOME = {"loss_type": "bce", "every_token": True}
REFIT = {
    "rule": "accuracy",
    "learning_rate": 3e-4,
    "every_token": True,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 64,
    "replay_share": 0.5,
    "replay_size": 120_000,
    "every": 5,
}
POLICY = {
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "adam_beta2": 0.99,
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "beta": 0.02,
    "entropy_coef": 0.01,
    "max_completion_length": LENGTH,
    "gold_reward": "accuracy",
    "eval_strategy": "steps",
    "eval_steps": 10,
    "eval_on_start": True,
    "save_steps": 20,
    "save_total_limit": 1,
}


BY_PROBABILITY = {"scale_rewards": "none"}
"""For a reward that is a probability. In a group whose completions are all right, the remaining differences are the
model's noise, which division by the group's spread would amplify."""

FEW = {"per_device_train_batch_size": 512}
"""Completions of a step of the policy that a small model rewards: enough new labels for refits to follow the policy."""
