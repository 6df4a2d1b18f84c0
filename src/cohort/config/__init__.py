"""The typed configurations of runs and methods, and reading them from YAML.

Keys are TRL's wherever TRL has one; defaults are DeepSeekMath's where it gives one. Enter at `read_run` (a YAML file)
or at a method's configuration class, such as `GRPOConfig`. Nothing here imports torch or transformers, so that a
mistake in a configuration is told at once; classes are imported when they are first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cohort.config.methods import HOMES, METHOD_CONFIGS, REWARD_CONFIGS, ConfigOf, built_in_config, imported
from cohort.config.problems import InvalidConfig, build, unknown_key, unknown_name
from cohort.config.run import RunConfig, read_run, read_values, split_run

if TYPE_CHECKING:
    from cohort.config.distill import DistillConfig
    from cohort.config.dpo import DPOConfig
    from cohort.config.engines import EngineConfig, RayEngineConfig, VLLMEngineConfig
    from cohort.config.grpo import PAPER, GRPOConfig, differences_from_paper, easily_misread
    from cohort.config.ppo import PPOConfig
    from cohort.config.refit import RefitConfig
    from cohort.config.reward_models import ProcessRewardConfig, RewardConfig, RewardModelConfig
    from cohort.config.rft import OnlineRFTConfig, RFTConfig
    from cohort.config.sampled import DSM, OnlineConfig, SampledConfig
    from cohort.config.sft import SFTConfig
    from cohort.config.sharding import ShardingConfig
    from cohort.config.training import TrainingConfig
    from cohort.config.variants import (
        BaselineConfig,
        GreedyBaselineConfig,
        GRPOProcessConfig,
        PassAtKConfig,
        PolicyGradientConfig,
        ReinforceConfig,
        RLOOConfig,
    )

__all__ = [
    "DSM",
    "METHOD_CONFIGS",
    "PAPER",
    "REWARD_CONFIGS",
    "BaselineConfig",
    "ConfigOf",
    "DPOConfig",
    "DistillConfig",
    "EngineConfig",
    "GRPOConfig",
    "GRPOProcessConfig",
    "GreedyBaselineConfig",
    "InvalidConfig",
    "OnlineConfig",
    "OnlineRFTConfig",
    "PPOConfig",
    "PassAtKConfig",
    "PolicyGradientConfig",
    "ProcessRewardConfig",
    "RFTConfig",
    "RLOOConfig",
    "RayEngineConfig",
    "RefitConfig",
    "ReinforceConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RunConfig",
    "SFTConfig",
    "SampledConfig",
    "ShardingConfig",
    "TrainingConfig",
    "VLLMEngineConfig",
    "build",
    "built_in_config",
    "differences_from_paper",
    "easily_misread",
    "read_run",
    "read_values",
    "split_run",
    "unknown_key",
    "unknown_name",
]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return imported(name)
    raise AttributeError(f"module 'cohort.config' has no attribute {name!r}")
