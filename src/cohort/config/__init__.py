"""One typed configuration. Keys are TRL's wherever TRL has one; defaults are DeepSeekMath's where it gives one.

Nothing here imports torch or transformers, so that a mistake in a configuration is told at once.
"""

from __future__ import annotations

from cohort.config.methods import (
    DSM,
    METHOD_CONFIGS,
    PAPER,
    BaselineConfig,
    DPOConfig,
    GRPOConfig,
    GRPOProcessConfig,
    OnlineConfig,
    OnlineRFTConfig,
    PassAtKConfig,
    PPOConfig,
    ReinforceConfig,
    RFTConfig,
    SampledConfig,
    differences_from_paper,
)
from cohort.config.problems import InvalidConfig, build, unknown_key, unknown_name
from cohort.config.refit import RefitConfig
from cohort.config.reward_models import REWARD_CONFIGS, ProcessRewardConfig, RewardConfig, RewardModelConfig
from cohort.config.run import RunConfig, read_run, read_values, split_run
from cohort.config.training import SFTConfig, TrainingConfig

__all__ = [
    "DSM",
    "METHOD_CONFIGS",
    "PAPER",
    "REWARD_CONFIGS",
    "BaselineConfig",
    "DPOConfig",
    "GRPOConfig",
    "GRPOProcessConfig",
    "InvalidConfig",
    "OnlineConfig",
    "OnlineRFTConfig",
    "PPOConfig",
    "PassAtKConfig",
    "ProcessRewardConfig",
    "RFTConfig",
    "RefitConfig",
    "ReinforceConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RunConfig",
    "SFTConfig",
    "SampledConfig",
    "TrainingConfig",
    "build",
    "differences_from_paper",
    "read_run",
    "read_values",
    "split_run",
    "unknown_key",
    "unknown_name",
]
