"""The settings of methods with GRPO's loss and another credit."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from cohort.config.grpo import GRPOConfig
from cohort.config.sampled import OnlineConfig


class GRPOProcessConfig(GRPOConfig):
    """GRPO with a reward for each step of reasoning."""

    step_separator: str = Field("\n", min_length=1, description="Text that ends a step.")
    step_pattern: str | None = Field(
        None, description="Regular expression (RE2) of what ends a step. None: step_separator."
    )
    step_splitter: str | None = Field(
        None, description="path/to/file.py:function from a text to its steps. None: step_pattern."
    )

    unused: ClassVar[tuple[str, ...]] = ("multi_objective_aggregation",)

    @property
    def token_advantages(self) -> bool:
        return True


class BaselineConfig(GRPOConfig):
    """GRPO's loss with another baseline and no division by the standard deviation."""

    unused: ClassVar[tuple[str, ...]] = ("scale_rewards", "multi_objective_aggregation")


class RLOOConfig(BaselineConfig):
    """RLOO: GRPO's clipped loss, the KL in the reward, each completion against the mean of the others."""

    reward_clip: tuple[float, float] | None = Field(
        None, description="[lowest, highest] total reward of a completion; clipped totals are counted."
    )
    normalize_advantages: bool = Field(
        False, description="Scale the advantages to mean 0 and standard deviation 1 over the batch."
    )

    unused: ClassVar[tuple[str, ...]] = (*BaselineConfig.unused, "kl_estimator", "use_bias_correction_kl")

    @property
    def kl_in_reward(self) -> bool:
        return True


class PassAtKConfig(BaselineConfig):
    """GRPO's loss with advantages for "one of k is correct"."""

    pass_k: int = Field(
        4, ge=1, description="k: one of so many draws is to be correct. Pass@k training, arXiv 2508.10751"
    )
    reward_threshold: float = Field(1.0, description="A completion is correct where its reward is at least this.")

    @model_validator(mode="after")
    def _enough(self) -> PassAtKConfig:
        if self.pass_k > self.num_generations:
            raise ValueError(f"pass_k is {self.pass_k}, more than num_generations, {self.num_generations}")
        return self


class ReinforceConfig(BaselineConfig):
    """REINFORCE++: GRPO's clipped loss, the KL in the reward, normalisation over the batch."""

    num_generations: int = Field(1, ge=1, description="Completions of one prompt; they are not compared.")

    least_generations: ClassVar[int] = 1
    unused: ClassVar[tuple[str, ...]] = (*BaselineConfig.unused, "kl_estimator", "use_bias_correction_kl")

    @property
    def token_advantages(self) -> bool:
        return self.beta > 0  # else the reward of a token is the outcome's

    @property
    def kl_in_reward(self) -> bool:
        return True


class GreedyBaselineConfig(BaselineConfig):
    """ReMax: GRPO's loss, with the reward of the prompt's greedy completion as the baseline."""

    num_generations: int = Field(1, ge=1, description="Completions of one prompt; they are not compared.")

    least_generations: ClassVar[int] = 1


class PolicyGradientConfig(OnlineConfig):
    """The policy gradient of samples that are used once, without ratio, clip or KL: gpg."""

    @model_validator(mode="after")
    def _compared(self) -> PolicyGradientConfig:
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations is {self.num_generations}: a completion is judged against its siblings, so a group "
                "needs at least 2; 8 is common"
            )
        return self
