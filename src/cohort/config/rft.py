"""The settings of RFT and Online RFT."""

from __future__ import annotations

from pydantic import Field

from cohort.config.sampled import OnlineConfig, SampledConfig


class RFTConfig(SampledConfig):
    """Rejection sampling fine-tuning: the starting model is sampled once, its correct completions are imitated."""

    learning_rate: float = Field(2e-5, ge=0, description="Peak of the schedule.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Kept completions.")
    reward_threshold: float = Field(1.0, description="A completion is correct where its reward is at least this.")
    mask_truncated_completions: bool = Field(False, description="Leave out completions that hit the length limit.")

    @property
    def masks_truncated(self) -> bool:
        return self.mask_truncated_completions


class OnlineRFTConfig(OnlineConfig):
    """Online RFT: the current policy's correct completions are imitated."""

    reward_threshold: float = Field(1.0, description="A completion is correct where its reward is at least this.")
