"""The settings of methods that learn from sampled completions."""

from __future__ import annotations

import math

from pydantic import Field, field_validator, model_validator

from cohort.config.refit import RefitConfig
from cohort.config.training import TrainingConfig

DSM = "DeepSeekMath, arXiv 2402.03300, section 4.2"


class SampledConfig(TrainingConfig):
    """What every method has that learns from sampled completions."""

    num_generations: int = Field(64, ge=1, description=f"G, completions of one prompt. {DSM}")
    max_completion_length: int = Field(1024, ge=1, description=DSM)
    temperature: float = Field(
        1.0, gt=0, description="Of sampling, and of the log-probabilities an online method trains."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the most likely tokens of this total probability.")
    top_k: int = Field(0, ge=0, description="0: all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest.")
    stop: list[str] = Field(default_factory=list, description="Strings that end a completion.")
    reward_weights: list[float] | None = Field(None, description="One for each reward function; null: 1 each.")
    reward_clip: tuple[float, float] | None = Field(
        (-5.0, 5.0), description="[lowest, highest] total of a completion; what is clipped is counted. null: none."
    )
    overlap_rewards: bool = Field(
        False,
        description="Reward groups as they end, in a thread beside the sampling of the others, instead of all at once "
        "behind it. For rewards that wait: a judge, programs, pools. Functions are called with whole groups.",
    )
    reward_preflight: bool = Field(
        True, description="Try the rewards on right, wrong, empty and truncated answers before training."
    )

    @field_validator("reward_clip")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"{list(value)} is no interval: give [lowest, highest], or null")
        return value


class OnlineConfig(SampledConfig):
    """What every method has that samples the current policy. Batch sizes count completions, as in TRL; groups are
    never split."""

    learning_rate: float = Field(1e-6, ge=0, description=DSM)
    per_device_train_batch_size: int = Field(1024, ge=1, description=f"Completions. {DSM}")
    mask_truncated_completions: bool = Field(False, description="A completion that hit the length limit gets no loss.")
    entropy_coef: float = Field(
        0.0, ge=0, description="Weight of the bonus for the policy's entropy, its mean over the step's tokens."
    )
    log_completions: int = Field(8, ge=0, description="Completions of each step kept in completions.jsonl.")
    iterations: int = Field(
        1,
        ge=1,
        description="I: the reference becomes the policy at the start of each. DeepSeekMath, arXiv 2402.03300, "
        "Algorithm 1",
    )
    steps_per_iteration: int | None = Field(
        None, ge=1, description="M, optimiser steps of an iteration; I x M take max_steps' place."
    )
    reward_model_refit: RefitConfig | None = Field(
        None, description="Train a reward model further on the policy's own samples; its keys: RefitConfig."
    )
    gold_reward: str | None = Field(
        None,
        description="Reward function that says what is really good: logged with weight 0 and compared with the rewards "
        "that are learned from. Scaling laws for reward model overoptimization, arXiv 2210.10760",
    )
    stop_on_overoptimization: bool = Field(
        False, description="Stop where gold_reward falls while the rewards that are learned from rise."
    )

    @property
    def masks_truncated(self) -> bool:
        return self.mask_truncated_completions

    @property
    def entropy_weight(self) -> float:
        return self.entropy_coef

    @property
    def logged_completions(self) -> int:
        return self.log_completions

    @property
    def replaces_equal_groups(self) -> bool:
        """Whether groups whose rewards are all equal are replaced by groups of other prompts."""
        return False

    @property
    def kept_tokens(self) -> int:
        """The token budget where one update takes the whole sampled batch and no activations are recomputed."""
        one_update = self.batch_uses[0] == 1 and not self.replaces_equal_groups
        return self.token_budget if one_update and not self.gradient_checkpointing else 0

    @model_validator(mode="after")
    def _whole_iterations(self) -> OnlineConfig:
        steps, uses = self.steps_per_iteration, math.prod(self.batch_uses)
        if steps is None and self.iterations > 1:
            raise ValueError(f"iterations is {self.iterations}: say with steps_per_iteration how long each is")
        if self.stop_on_overoptimization and self.gold_reward is None:
            raise ValueError("stop_on_overoptimization needs to know what is good: name a rule as gold_reward")
        if self.reward_model_refit is not None and steps is None and self.reward_model_refit.every is None:
            raise ValueError(
                "reward_model_refit would act after the last step: give steps_per_iteration, or its own `every`"
            )
        if steps is None:
            return self
        if steps % uses:
            raise ValueError(
                f"steps_per_iteration is {steps}, and a sampled batch serves {uses} steps: an iteration ends with a "
                f"batch; use a multiple of {uses}"
            )
        total = self.iterations * steps
        if self.max_steps not in (-1, total):
            raise ValueError(
                f"max_steps is {self.max_steps}, and {self.iterations} iterations of {steps} steps are {total}: leave "
                "max_steps out"
            )
        self.max_steps = total
        return self

    @property
    def training_temperature(self) -> float:
        return self.temperature

    @property
    def prompts_per_step(self) -> int:
        """Whole groups in one optimiser step: at least one, rounded up."""
        return -(-self.batch_size // self.num_generations)
