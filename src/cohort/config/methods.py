"""Which settings a method has.

pydantic takes milliseconds to make a class of so many fields, and a mistake in a configuration is to be told at once: a
class is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from cohort.config.reward_models import RewardModelConfig
    from cohort.config.training import TrainingConfig

Config = TypeVar("Config")

HOMES = {
    "BaselineConfig": "variants",
    "DPOConfig": "dpo",
    "DSM": "sampled",
    "GRPOConfig": "grpo",
    "GRPOProcessConfig": "variants",
    "OnlineConfig": "sampled",
    "OnlineRFTConfig": "rft",
    "PAPER": "grpo",
    "PPOConfig": "ppo",
    "PassAtKConfig": "variants",
    "ProcessRewardConfig": "reward_models",
    "RFTConfig": "rft",
    "RefitConfig": "refit",
    "ReinforceConfig": "variants",
    "RewardConfig": "reward_models",
    "RewardModelConfig": "reward_models",
    "SFTConfig": "training",
    "SampledConfig": "sampled",
    "TrainingConfig": "training",
    "differences_from_paper": "grpo",
}
"""Name -> the module of this package that has it."""


def imported(name: str) -> Any:
    return getattr(import_module(f"cohort.config.{HOMES[name]}"), name)


class Settings(Mapping[str, type[Config]], Generic[Config]):
    """Method -> the class of its settings."""

    def __init__(self, names: dict[str, str]):
        self._names = names

    def __getitem__(self, method: str) -> type[Config]:
        return imported(self._names[method])  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


METHOD_CONFIGS: Settings[TrainingConfig] = Settings(
    {
        "sft": "SFTConfig",
        "rft": "RFTConfig",
        "online_rft": "OnlineRFTConfig",
        "dpo": "DPOConfig",
        "ppo": "PPOConfig",
        "grpo": "GRPOConfig",
        "grpo_process": "GRPOProcessConfig",
        "rloo": "BaselineConfig",
        "opo": "BaselineConfig",
        "pass_at_k": "PassAtKConfig",
        "reinforce++": "ReinforceConfig",
    }
)
REWARD_CONFIGS: Settings[RewardModelConfig] = Settings(
    {"reward_model": "RewardConfig", "process_reward_model": "ProcessRewardConfig"}
)
"""`method` of `cohort train` for what trains no policy."""
