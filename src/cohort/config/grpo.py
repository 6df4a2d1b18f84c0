"""The settings of GRPO, and how a run's differ from DeepSeekMath's."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

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
    epsilon: float = Field(0.2, ge=0, description="PPO, arXiv 1707.06347, section 6.1")
    epsilon_high: float | None = Field(None, ge=0, description="None: epsilon.")
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = Field(
        "grpo", description="DeepSeekMath Eq. 3: grpo"
    )
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="DeepSeekMath, section 4.1.2")
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize",
        description="normalize_then_sum: each reward by its group, their sum by the batch. GDPO, arXiv 2601.05242",
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="sequence: one ratio for a completion, epsilon about 3e-4. GSPO, arXiv 2507.18071"
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
    vllm_importance_sampling_correction: bool = Field(
        False,
        description="Weight tokens by min(policy / sampler, C): for samples of another engine or of older weights.",
    )
    vllm_importance_sampling_clip_max: float = Field(2.0, gt=0, description="C of that weight.")
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
        _refuse_without_effect(self)
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


def _refuse_without_effect(config: GRPOConfig) -> None:
    """Raise ValueError where a key is set that has no effect, because of another key or in this method."""
    reasons = {}
    if config.multi_objective_aggregation == "normalize_then_sum":
        reasons["scale_rewards"] = "multi_objective_aggregation: normalize_then_sum scales by itself"
    if config.loss_type == "cispo":
        reasons["delta"] = "loss_type: cispo has one bound, epsilon_high"
    if not config.dynamic_sampling:
        reasons["max_sampling_rounds"] = "dynamic_sampling is off"
    if not config.vllm_importance_sampling_correction:
        reasons["vllm_importance_sampling_clip_max"] = "vllm_importance_sampling_correction is off"
    reasons |= dict.fromkeys(config.unused, "this method does not read it")
    for key, reason in reasons.items():
        if getattr(config, key) != type(config).model_fields[key].default:
            raise ValueError(f"{key} is {getattr(config, key)!r} and would do nothing: {reason}. Leave it out")
    if config.delta is not None and config.delta <= 1 + (config.epsilon_high or config.epsilon):
        raise ValueError(f"delta is {config.delta}: it must lie above the clip, 1 + epsilon_high")


PAPER = ("learning_rate", "num_generations", "max_completion_length", "num_iterations", "beta", "kl_estimator",
         "use_bias_correction_kl", "loss_type", "scale_rewards", "multi_objective_aggregation",
         "importance_sampling_level", "delta", "top_entropy_quantile", "vllm_importance_sampling_correction",
         "dynamic_sampling", "entropy_coef", "mask_truncated_completions")  # fmt: skip
"""Keys whose defaults are the paper's settings."""


def differences_from_paper(config: TrainingConfig) -> list[str]:
    """`key: value (paper: value)` for each of DeepSeekMath's GRPO settings from which this run differs."""
    if not isinstance(config, GRPOConfig):
        return []
    differences = [
        f"{key}: {getattr(config, key)} (paper: {GRPOConfig.model_fields[key].default})"
        for key in PAPER
        if getattr(config, key) != GRPOConfig.model_fields[key].default
    ]
    completions = config.prompts_per_step * config.num_generations
    return differences + ([f"completions per step: {completions} (paper: 1024)"] if completions != 1024 else [])
