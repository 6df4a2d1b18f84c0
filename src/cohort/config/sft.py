"""The settings of supervised fine-tuning."""

from __future__ import annotations

from pydantic import Field

from cohort.config.training import TrainingConfig


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on demonstrations: the row `sft` of the table of methods."""

    learning_rate: float = Field(2e-5, ge=0, description="Peak of the schedule.")
    max_length: int | None = Field(
        None,
        ge=2,
        description="Most tokens of prompt and completion; see truncation. None: the model's positions.",
    )

    mask_history: bool = Field(
        False, description="Train on the last answer of a conversation only; false: on every assistant turn."
    )

    @property
    def max_sequence_length(self) -> int | None:
        return self.max_length
