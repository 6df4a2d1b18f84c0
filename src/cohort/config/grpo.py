"""The settings of GRPO, and how a run's differ from DeepSeekMath's."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from cohort.config.effects import refuse_lost_advantages, refuse_without_effect
from cohort.config.sampled import DSM, OnlineConfig
from cohort.config.training import TrainingConfig


class GRPOConfig(OnlineConfig):
    """GRPO (DeepSeekMath). Groups are never split."""

    generation_batch_size: int | None = Field(None, ge=1, description="Completions sampled at a time.")
    steps_per_generation: int | None = Field(
        None,
        ge=1,
        description="Size of the sampled batch in units of per_device_train_batch_size. None: "
        "gradient_accumulation_steps.",
    )
    num_iterations: int = Field(1, ge=1, description=f"mu, updates on each sampled batch. {DSM}: one")

    beta: float = Field(0.04, ge=0, description=f"Weight of the KL term. {DSM}")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="DeepSeekMath Eq. 4: k3")
    use_bias_correction_kl: bool = Field(False, description="Weight the KL estimate by the ratio.")
    epsilon: float = Field(
        0.2, ge=0, description="Lower bound of the clip; what it bounds: docs/variants.md. PPO, arXiv 1707.06347"
    )
    epsilon_high: float | None = Field(
        None,
        ge=0,
        description="Upper bound. None: epsilon. For cispo the cap is 1 + epsilon_high; in TRL it is epsilon_high.",
    )
    loss_type: Literal[
        "grpo",
        "bnpo",
        "dr_grpo",
        "dapo",
        "luspo",
        "cispo",
        "sapo",
        "gmpo",
        "vespo",
        "dppo_tv",
        "dppo_kl",
        "clip_cov",
        "kl_cov",
    ] = Field("grpo", description="DeepSeekMath Eq. 3: grpo. The others: docs/variants.md")
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="DeepSeekMath, section 4.1.2")
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize",
        description="normalize_then_sum: each reward by its group, their sum by the batch. GDPO, arXiv 2601.05242",
    )
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] = Field(
        "token",
        description="sequence: one ratio for a completion, epsilon about 3e-4; sequence_token: the same ratio, each "
        "token with its own advantage. GSPO, arXiv 2507.18071",
    )
    delta: float | None = Field(
        None,
        gt=1,
        description="Upper bound of the ratio where the advantage is negative. Dual clip, arXiv 1912.09729",
    )
    top_entropy_quantile: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of tokens, those of highest entropy, that are trained on. Beyond the 80/20 rule, arXiv "
        "2506.01939",
    )
    sapo_temperature_pos: float = Field(1.0, gt=0, description="For sapo: tau where the advantage is positive.")
    sapo_temperature_neg: float = Field(1.05, gt=0, description="For sapo: tau of the other tokens.")
    vespo_k_pos: float = Field(2.0, ge=0, description="For vespo: k where the advantage is not negative.")
    vespo_lambda_pos: float = Field(3.0, ge=0, description="For vespo: lambda where the advantage is not negative.")
    vespo_k_neg: float = Field(3.0, ge=0, description="For vespo: k where the advantage is negative.")
    vespo_lambda_neg: float = Field(2.0, ge=0, description="For vespo: lambda where the advantage is negative.")
    clip_cov_ratio: float = Field(2e-4, gt=0, le=1, description="For clip_cov: fraction of tokens left out.")
    clip_cov_lb: float = Field(1.0, description="For clip_cov: they have a covariance above this.")
    clip_cov_ub: float = Field(5.0, description="For clip_cov: and below this.")
    kl_cov_ratio: float = Field(2e-4, gt=0, le=1, description="For kl_cov: fraction of tokens with the penalty.")
    kl_cov_coef: float = Field(1.0, ge=0, description="For kl_cov: weight of the penalty, |log ratio|.")
    off_policy_mask_threshold: float | None = Field(
        None,
        ge=0,
        description="Leave out completions with a negative advantage whose mean log(pi_old / pi) exceeds this. "
        "DeepSeek-V3.2, arXiv 2512.02556",
    )
    vllm_importance_sampling_correction: bool = Field(
        False,
        description="Weight tokens by policy / sampler, within bounds: for samples of another engine or of older "
        "weights. Where it is not set, it is true with staleness above 0 and with engine: vllm.",
    )
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        Field(
            "token_truncate",
            description="That ratio of each token or of the whole completion; outside the bounds it becomes the bound "
            "(truncate) or 0 (mask).",
        )
    )
    vllm_importance_sampling_clip_max: float | None = Field(2.0, gt=0, description="Its upper bound; null: none.")
    vllm_importance_sampling_clip_min: float | None = Field(None, ge=0, description="Its lower bound; null: none.")
    dynamic_sampling: bool = Field(
        False,
        description="Replace groups whose rewards are all equal by groups of other prompts. DAPO, arXiv 2503.14476",
    )
    max_sampling_rounds: int = Field(
        10,
        ge=1,
        description="For dynamic_sampling: most rounds of sampling for one batch; after them equal groups stay in it.",
    )

    least_generations: ClassVar[int] = 2
    unused: ClassVar[tuple[str, ...]] = ()
    """Keys that the method's functions do not read."""

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("scale_rewards"), bool):
            values = {**values, "scale_rewards": "group" if values["scale_rewards"] else "none"}
        return values

    @model_validator(mode="after")
    def _possible(self) -> GRPOConfig:
        if self.num_generations < self.least_generations:
            raise ValueError(
                f"num_generations is {self.num_generations}: a completion is judged against its siblings, "
                "so a group needs at least 2; 8 is common"
            )
        correction = "vllm_importance_sampling_correction"
        differs = self.staleness or self.engine.vllm is not None
        if differs and correction not in (*self.model_fields_set, *self.unused):
            self.vllm_importance_sampling_correction = True
        refuse_without_effect(self)
        refuse_lost_advantages(self)
        if self.dynamic_sampling and self.num_generations < 2:
            raise ValueError("dynamic_sampling replaces groups whose rewards are all equal: num_generations is 1")
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"vllm_importance_sampling_clip_min is {low}, not below vllm_importance_sampling_clip_max, {high}"
            )
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ValueError(
                "generation_batch_size and steps_per_generation both set the sampled batch: give one of them"
            )
        return self

    @property
    def batch_uses(self) -> tuple[int, int]:
        return self.updates_per_generation, self.num_iterations

    @property
    def trained_fraction(self) -> float:
        return self.top_entropy_quantile

    @property
    def clip_high(self) -> float:
        """epsilon_high, or epsilon where it is not given."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def token_advantages(self) -> bool:
        """Whether the tokens of a completion have advantages of their own."""
        return False

    @property
    def takes_one_advantage(self) -> bool:
        return self.importance_sampling_level == "sequence" or self.loss_type == "gmpo"

    @property
    def corrects_sampler(self) -> bool:
        return self.vllm_importance_sampling_correction

    @property
    def replaces_equal_groups(self) -> bool:
        return self.dynamic_sampling

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    @property
    def updates_per_generation(self) -> int:
        """Optimiser steps among which one sampled batch is divided; each part is used num_iterations times."""
        if self.generation_batch_size is not None:
            return max(1, -(-self.generation_batch_size // self.batch_size))
        if self.steps_per_generation is not None:
            return max(1, -(-self.steps_per_generation // self.gradient_accumulation_steps))
        return 1


PAPER = ("learning_rate", "num_generations", "max_completion_length", "num_iterations", "beta", "kl_estimator",
         "use_bias_correction_kl", "loss_type", "scale_rewards", "multi_objective_aggregation",
         "importance_sampling_level", "delta", "top_entropy_quantile", "vllm_importance_sampling_correction",
         "off_policy_mask_threshold", "dynamic_sampling", "entropy_coef", "use_adaptive_entropy",
         "mask_truncated_completions")  # fmt: skip
"""Keys whose defaults are the paper's settings."""


def differences_from_paper(config: TrainingConfig) -> list[str]:
    """`key: value (paper: value)` for each of DeepSeekMath's GRPO settings from which this run differs."""
    if not isinstance(config, GRPOConfig):
        return []
    differences = [
        f"{key}: {getattr(config, key)} (paper: {GRPOConfig.model_fields[key].default})"
        for key in PAPER
        if key not in config.unused and getattr(config, key) != GRPOConfig.model_fields[key].default
    ]
    completions = config.prompts_per_step * config.num_generations
    return differences + ([f"completions per step: {completions} (paper: 1024)"] if completions != 1024 else [])


SUMMED = ("bnpo", "dr_grpo", "dapo", "cispo")
"""Values of loss_type that sum over the tokens of a completion."""


def easily_misread(config: TrainingConfig) -> list[str]:
    """A line for each key whose meaning is not TRL's, or not the one of the paper that it is named after."""
    lines: list[str] = []
    if isinstance(config, GRPOConfig) and config.loss_type == "cispo":
        cap = 1 + config.clip_high
        lines.append(f"cispo caps the ratio at 1 + epsilon_high = {cap:g}; in TRL epsilon_high is the cap itself")
    if isinstance(config, GRPOConfig) and config.loss_type == "luspo" and config.importance_sampling_level == "token":
        lines.append("luspo with ratios of single tokens; the paper's is importance_sampling_level: sequence")
    if isinstance(config, GRPOConfig) and config.importance_sampling_level == "sequence" and config.loss_type in SUMMED:
        lines.append(
            f"importance_sampling_level: sequence with loss_type: {config.loss_type} weights each sequence by its "
            "completion length; GSPO's objective is that of loss_type: grpo"
        )
    return lines
