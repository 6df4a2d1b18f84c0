"""The settings of training reward models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cohort.config.sampled import DSM
from cohort.config.training import TrainingConfig


class RewardModelConfig(TrainingConfig):
    """The settings that reward models of both kinds have."""

    learning_rate: float = Field(2e-5, ge=0, description=f"Peak of the schedule. {DSM}")
    per_device_train_batch_size: int = Field(8, ge=1, description="Texts, or pairs.")
    max_length: int | None = Field(
        None,
        ge=2,
        description="Most tokens of prompt and completion. None: the model's positions.",
    )
    truncation: Literal["drop", "cut"] = Field(
        "drop",
        description="What happens to texts that are too long. drop: they are left out; cut: they lose their beginning.",
    )
    chat_template_path: str | None = Field(
        None,
        description="Chat template in place of the tokenizer's own: a .jinja file, or the directory or hub name of a "
        "tokenizer that has it.",
    )
    head: Literal["linear", "mlp"] = Field(
        "linear",
        description="linear: transformers' classifier; mlp: Linear(h, h/2), ReLU, Dropout 0.1, Linear(h/2, 1) on the "
        "first token of encoders, the last of decoders. For a model that has none.",
    )
    pooling: Literal["token", "mean"] = Field(
        "token",
        description="What head: mlp reads of a text. token: that token's hidden state; mean: the mean of all, as "
        "sentence encoders are trained.",
    )
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        "steps", description="Held-out loss every eval_steps, or after each pass over the data; both also at the end."
    )
    eval_steps: float = Field(0.1, gt=0, description="Steps between evaluations, below 1 as a fraction of all steps.")
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after so many evaluations without a lower held-out loss, and keep the model of the lowest.",
    )

    @property
    def max_sequence_length(self) -> int | None:
        return self.max_length

    @field_validator("distributed")
    @classmethod
    def _not_sharded(cls, value: str) -> str:
        if value == "fsdp2":
            raise ValueError("a reward model is not divided among ranks: leave it out")
        return value

    @field_validator("router_aux_loss_coef")
    @classmethod
    def _not_balanced(cls, value: float | None) -> float | None:
        if value:
            raise ValueError(f"{value:g} would do nothing: reward models are trained without a load-balancing loss")
        return value


class RewardConfig(RewardModelConfig):
    """A reward model that scores completions, from labelled rows or preference pairs. Keys are those of TRL's
    RewardConfig."""

    loss_type: Literal["preference", "bce", "mse"] | None = Field(
        None,
        description="preference: Bradley and Terry's, on pairs; bce: labels from 0 to 1 as probabilities; mse: labels "
        "as scores. None: preference where rows have pairs, else bce.",
    )
    every_token: bool = Field(
        False,
        description="Train the label at every token of a completion, as the expected label of the text up to that "
        "token, so that the model shows where texts go wrong; the score is still the last token's. Decoders; bce and "
        "mse. Cobbe et al., arXiv 2110.14168, section 4.3",
    )
    center_rewards_coefficient: float | None = Field(
        None,
        ge=0,
        description="Weight of the squared sum of a pair's scores, which keeps them around 0; 0.01 is common.",
    )


class ProcessRewardConfig(RewardModelConfig):
    """A reward model that scores each step of a completion."""

    step_separator: str = Field("\n", min_length=1, description="What ends a step.")
    step_pattern: str | None = Field(
        None, description="Regular expression (RE2) of what ends a step. None: step_separator."
    )
    step_splitter: str | None = Field(
        None, description="path/to/file.py:function from a text to its steps. None: step_pattern."
    )
