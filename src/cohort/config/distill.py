"""The settings of on-policy distillation."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_serializer, field_validator

from cohort.config.grpo import GRPOConfig
from cohort.config.loading import plain, with_dtype
from cohort.config.variants import BaselineConfig


class DistillConfig(GRPOConfig):
    """On-policy distillation: a teacher judges every token of the policy's own completions; GRPO's loss. reward_funcs
    are optional, and only logged."""

    teacher: str | None = Field(
        None,
        description="Hub name or path of a causal language model or an adapter, with the model's vocabulary. In Python "
        "also Trainer(teacher=...).",
    )
    teacher_model_init_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="As model_init_kwargs, for the teacher."
    )
    num_generations: int = Field(1, ge=1, description="Completions of one prompt; they are not compared.")
    beta: float = Field(0.0, ge=0, description="There is no reference beside the teacher.")

    least_generations: ClassVar[int] = 1
    unused: ClassVar[tuple[str, ...]] = (
        *BaselineConfig.unused,
        *("beta", "kl_estimator", "use_bias_correction_kl", "dynamic_sampling"),
        *("iterations", "steps_per_iteration", "reward_model_refit", "gold_reward", "stop_on_overoptimization"),
    )

    @field_validator("teacher_model_init_kwargs")
    @classmethod
    def _one_teacher_dtype(cls, value: dict[str, Any]) -> dict[str, Any]:
        return with_dtype(value)

    @field_serializer("teacher_model_init_kwargs", when_used="json")
    def _plain_teacher(self, value: dict[str, Any]) -> Any:
        return plain(value)

    @property
    def token_advantages(self) -> bool:
        return True

    @property
    def learns_from_rewards(self) -> bool:
        return False
