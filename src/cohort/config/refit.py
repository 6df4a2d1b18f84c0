"""The settings of training a reward model further during a policy's run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RefitConfig(BaseModel):
    """`reward_model_refit`: how a reward model among reward_funcs is trained further on the policy's own samples."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True, allow_inf_nan=False)

    reward: str | None = Field(
        None, description="The reward model's name in metrics. None: the only one among reward_funcs."
    )
    rule: str = Field("accuracy", description="Reward function that labels the samples; logged with weight 0.")
    loss_type: Literal["bce", "mse", "preference"] = Field(
        "bce",
        description="bce: the label is 1 where the rule's score is above 0; mse: the score itself; preference: a right "
        "completion is preferred to a wrong one of its group.",
    )
    every_token: bool = Field(
        False, description="Train the label at every token of a completion, as RewardConfig's every_token does."
    )
    learning_rate: float = Field(2e-5, gt=0, description="Constant. DeepSeekMath, arXiv 2402.03300, section 4.2")
    num_train_epochs: int = Field(1, ge=1, description="Passes over the samples of one refit.")
    per_device_train_batch_size: int = Field(32, ge=1, description="Completions, or pairs, of one optimiser step.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Norm to which larger gradients are scaled down. 0: no clipping."
    )
    max_samples: int | None = Field(
        None, ge=1, description="New completions, or pairs, of one refit, drawn at random. None: all since the last."
    )
    replay_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Fraction of a refit's samples that come from history. DeepSeekMath, Algorithm 1: 10%",
    )
    history: str | None = Field(
        None,
        description="The data on which the model was trained before this run, named as for `dataset`. It is history "
        "from the first refit on, so that the model does not forget errors that the policy no longer makes.",
    )
    replay_size: int = Field(
        10_000, ge=1, description="Completions, or pairs, that history holds: a uniform random sample of all of them."
    )
    every: int | None = Field(
        None, ge=1, description="Optimiser steps between refits within an iteration. None: one refit, at its end."
    )
