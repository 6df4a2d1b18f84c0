"""A reward model that keeps learning while the policy does."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RefitConfig(BaseModel):
    """`reward_model_refit`: how a reward model among reward_funcs is trained further on the policy's own samples."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)

    reward: str | None = Field(None, description="Its name in metrics. None: the only reward model there is.")
    rule: str = Field("accuracy", description="Reward function that labels the samples; it is logged with weight 0.")
    loss_type: Literal["bce", "mse", "preference"] = Field(
        "bce",
        description="bce: right where the rule's score is above 0; mse: the score itself; preference: a right "
        "completion above a wrong one of its group.",
    )
    every_token: bool = Field(
        False, description="The label is learnt at every token of a completion, as RewardConfig's every_token says."
    )
    learning_rate: float = Field(2e-5, gt=0, description="Constant. DeepSeekMath, arXiv 2402.03300, section 4.2")
    num_train_epochs: int = Field(1, ge=1, description="Passes over the samples of one refit.")
    per_device_train_batch_size: int = Field(32, ge=1, description="Completions, or pairs, of one optimiser step.")
    max_grad_norm: float = Field(1.0, ge=0, description="0 leaves gradients as they are.")
    max_samples: int | None = Field(
        None, ge=1, description="New completions, or pairs, of one refit, drawn at random. None: all since the last."
    )
    replay_share: float = Field(
        0.1, ge=0, lt=1, description="Share of history among what a refit sees. DeepSeekMath, Algorithm 1: 10%"
    )
    history: str | None = Field(
        None,
        description="What the model was trained on before this run, a file or a data set as for `dataset`: history "
        "from the first refit on, so that what the policy no longer gets wrong is not forgotten.",
    )
    replay_size: int = Field(
        10_000, ge=1, description="Completions, or pairs, of all history that are kept, each with the same chance."
    )
    every: int | None = Field(
        None, ge=1, description="Optimiser steps between refits within an iteration. None: at its end only."
    )
