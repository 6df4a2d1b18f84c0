"""From the name of a built-in method to the class of its settings.

Making a pydantic class of so many fields takes milliseconds, and a mistake in a configuration should be told at once:
each class is imported when it is first looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cohort.config.problems import unknown_name
from cohort.types import UserError

if TYPE_CHECKING:
    from cohort.config.reward_models import RewardModelConfig
    from cohort.config.training import TrainingConfig

Config = TypeVar("Config")

HOMES = {
    "BaselineConfig": "variants",
    "DPOConfig": "dpo",
    "DistillConfig": "distill",
    "DSM": "sampled",
    "EngineConfig": "engines",
    "GRPOConfig": "grpo",
    "GreedyBaselineConfig": "variants",
    "GRPOProcessConfig": "variants",
    "OnlineConfig": "sampled",
    "OnlineRFTConfig": "rft",
    "PAPER": "grpo",
    "PPOConfig": "ppo",
    "PassAtKConfig": "variants",
    "PolicyGradientConfig": "variants",
    "ProcessRewardConfig": "reward_models",
    "RFTConfig": "rft",
    "RLOOConfig": "variants",
    "RayEngineConfig": "engines",
    "RefitConfig": "refit",
    "ReinforceConfig": "variants",
    "RewardConfig": "reward_models",
    "RewardModelConfig": "reward_models",
    "SFTConfig": "sft",
    "ShardingConfig": "sharding",
    "SampledConfig": "sampled",
    "TrainingConfig": "training",
    "VLLMEngineConfig": "engines",
    "differences_from_paper": "grpo",
    "easily_misread": "grpo",
}
"""Name -> the module of this package that defines it."""


def imported(name: str) -> Any:
    """What `HOMES` names, imported from its module."""
    return getattr(import_module(f"cohort.config.{HOMES[name]}"), name)


class Settings(Mapping[str, type[Config]], Generic[Config]):
    """Method -> the class of its settings, imported at the look-up."""

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
        "distill": "DistillConfig",
        "ppo": "PPOConfig",
        "grpo": "GRPOConfig",
        "grpo_process": "GRPOProcessConfig",
        "rloo": "RLOOConfig",
        "opo": "BaselineConfig",
        "pass_at_k": "PassAtKConfig",
        "reinforce++": "ReinforceConfig",
        "reinforce++_baseline": "BaselineConfig",
        "remax": "GreedyBaselineConfig",
        "maxrl": "BaselineConfig",
        "gpg": "PolicyGradientConfig",
    }
)
REWARD_CONFIGS: Settings[RewardModelConfig] = Settings(
    {"reward_model": "RewardConfig", "process_reward_model": "ProcessRewardConfig"}
)
"""`method` -> class of settings, for the kinds of reward model that `cohort train` trains."""

ConfigOf = Callable[[str], "type[TrainingConfig]"]
"""From `method` of a run to the class of its settings. Raises UserError for an unknown name."""


def built_in_config(method: str) -> type[TrainingConfig]:
    """The class of a built-in method's settings. Raises UserError, with the nearest name, for any other."""
    kind = METHOD_CONFIGS.get(method) or REWARD_CONFIGS.get(method)
    if kind is None:
        raise unknown_method(method, [*METHOD_CONFIGS, *REWARD_CONFIGS])
    return kind


def unknown_method(method: str, names: Iterable[str]) -> UserError:
    """The error for a name that is not one of `names`."""
    return UserError(
        f"unknown method {method!r} (a row of your own is named as path/to/file.py:row){unknown_name(method, names)}"
    )
