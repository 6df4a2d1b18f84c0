"""Cohort: teach a language model by comparing its own answers with each other (GRPO, arXiv 2402.03300)."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cohort.compat.libraries import ignore_warnings
from cohort.types import printable

if TYPE_CHECKING:
    from cohort.compat.parser import TrlParser
    from cohort.compat.script_arguments import ModelConfig, ScriptArguments
    from cohort.compat.scripts import get_kbit_device_map, get_peft_config, get_quantization_config
    from cohort.config import (
        BaselineConfig,
        DistillConfig,
        DPOConfig,
        GRPOConfig,
        GRPOProcessConfig,
        OnlineRFTConfig,
        PassAtKConfig,
        PPOConfig,
        ProcessRewardConfig,
        ReinforceConfig,
        RewardConfig,
        RFTConfig,
        RLOOConfig,
        SFTConfig,
    )
    from cohort.train.reward_models.trainer import RewardTrainer
    from cohort.train.trainer import Trainer
    from cohort.train.trainers import DPOTrainer, GRPOTrainer, PPOTrainer, RFTTrainer, RLOOTrainer, SFTTrainer
    from cohort.types import UserError

__version__ = "0.1.0"
__all__ = [
    "BaselineConfig",
    "DPOConfig",
    "DPOTrainer",
    "DistillConfig",
    "GRPOConfig",
    "GRPOProcessConfig",
    "GRPOTrainer",
    "ModelConfig",
    "OnlineRFTConfig",
    "PPOConfig",
    "PPOTrainer",
    "PassAtKConfig",
    "ProcessRewardConfig",
    "RFTConfig",
    "RFTTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "ReinforceConfig",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "ScriptArguments",
    "Trainer",
    "TrlParser",
    "UserError",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
]

_HOMES = {
    **dict.fromkeys([name for name in __all__ if name.endswith("Config")], "cohort.config"),
    **dict.fromkeys([name for name in __all__ if name.endswith("Trainer")], "cohort.train.trainers"),
    **dict.fromkeys(["ModelConfig", "ScriptArguments"], "cohort.compat.script_arguments"),
    **dict.fromkeys([name for name in __all__ if name.startswith("get_")], "cohort.compat.scripts"),
    "TrlParser": "cohort.compat.parser",
    "RewardTrainer": "cohort.train.reward_models.trainer",
    "Trainer": "cohort.train.trainer",
    "UserError": "cohort.types",
}


def _make_printable(record: logging.LogRecord) -> bool:
    """Log lines name columns, files and rewards, and quote errors of users' code: none of them drives a terminal, or
    looks like a record of its own."""
    record.msg, record.args = printable(record.getMessage()).replace("\n", "\n  "), ()
    return True


# A filter of the logger: every handler's lines pass it, also those of an application's own handlers.
logging.getLogger("cohort").addFilter(_make_printable)


def __getattr__(name: str) -> Any:
    # Imported when asked for: the trainers need torch and transformers, the configurations do not.
    if name in _HOMES:
        ignore_warnings()
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cohort' has no attribute {name!r}")
