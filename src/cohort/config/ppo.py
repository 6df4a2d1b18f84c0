"""The settings of PPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cohort.config.sampled import OnlineConfig


class PPOConfig(OnlineConfig):
    """PPO with a critic. Keys are those of TRL's PPOConfig."""

    num_generations: int = Field(1, ge=1, description="Completions of one prompt; PPO does not compare them.")
    num_ppo_epochs: int = Field(4, ge=1, description="Passes over each sampled batch.")
    num_mini_batches: int = Field(1, ge=1, description="Optimiser steps of one pass over a sampled batch.")
    kl_coef: float = Field(0.05, ge=0, description="Weight of the per-token KL in the reward.")
    cliprange: float = Field(0.2, ge=0, description="PPO, arXiv 1707.06347, section 6.1")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda. GAE, arXiv 1506.02438, Eq. 16")
    vf_coef: float = Field(
        0.1,
        ge=0,
        description="Weight of the critic's loss; with critic: own it only changes when its gradient is clipped.",
    )
    cliprange_value: float = Field(
        0.2, gt=0, description="How far a value may move from its old one before it is clipped."
    )
    critic: Literal["own", "shared"] = Field(
        "own", description="Layers below the critic's head. own: a copy of the model; shared: the policy's."
    )
    critic_learning_rate: float | None = Field(None, ge=0, description="Peak of the schedule. None: learning_rate.")

    @property
    def batch_uses(self) -> tuple[int, int]:
        return self.num_mini_batches, self.num_ppo_epochs

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def kl_in_reward(self) -> bool:
        return True
