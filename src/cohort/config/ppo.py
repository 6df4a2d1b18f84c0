"""The settings of PPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cohort.config.sampled import OnlineConfig


class PPOConfig(OnlineConfig):
    """PPO with a critic. Keys are those of TRL's PPOConfig."""

    num_generations: int = Field(1, ge=1, description="Completions of one prompt; PPO does not compare them.")
    num_ppo_epochs: int = Field(4, ge=1, description="Passes over each sampled batch.")
    num_mini_batches: int = Field(1, ge=1, description="Optimiser steps of one pass over a sampled batch.")
    kl_coef: float = Field(0.05, ge=0, description="Weight of the per-token KL in the reward.")
    cliprange: float = Field(0.2, ge=0, description="PPO, arXiv 1707.06347, section 6.1")
    cliprange_high: float | None = Field(None, ge=0, description="Upper bound of the clip. None: cliprange.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda. GAE, arXiv 1506.02438, Eq. 16")
    lam_alpha: float | None = Field(
        None,
        gt=0,
        description="Replaces lam in the policy's advantages by 1 - 1 / (lam_alpha * length), by the completion's "
        "length. VAPO, arXiv 2504.05118: 0.05",
    )
    critic_lam: float | None = Field(
        None, ge=0, le=1, description="lambda of the critic's targets. None: the policy's. VAPO, arXiv 2504.05118: 1"
    )
    positive_nll_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of the negative log-likelihood of correct completions, a mean over their tokens. VAPO, "
        "arXiv 2504.05118: 0.1",
    )
    reward_threshold: float = Field(
        1.0, description="For positive_nll_coef: a completion is correct where its reward is at least this."
    )
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
    def imitation_weight(self) -> float:
        return self.positive_nll_coef

    @property
    def kl_in_reward(self) -> bool:
        return True

    @model_validator(mode="after")
    def _read(self) -> PPOConfig:
        if self.lam_alpha is not None and self.lam != type(self).model_fields["lam"].default:
            raise ValueError(f"lam is {self.lam} and would do nothing: lam_alpha replaces it. Leave one of them out")
        if not self.positive_nll_coef and self.reward_threshold != type(self).model_fields["reward_threshold"].default:
            raise ValueError(
                f"reward_threshold is {self.reward_threshold} and would do nothing: positive_nll_coef is 0. Leave it "
                "out"
            )
        return self
