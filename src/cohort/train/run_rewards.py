"""From a run's configuration and reward functions to its rewards, and a first try of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cohort.config import GRPOProcessConfig, TrainingConfig
from cohort.rewards.check.preflight import preflight
from cohort.rewards.compose import Rewards
from cohort.rewards.resolve import with_run_defaults
from cohort.rewards.steps import make_split
from cohort.train.iterations.make import rules_of
from cohort.types import Row, TrainerState, UserError

log = logging.getLogger("cohort")

RewardSpec = str | Callable[..., Any] | Mapping[str, Any]


def make_rewards(functions: RewardSpec | Sequence[RewardSpec] | None, config: TrainingConfig) -> Rewards | None:
    if functions is None:
        return None
    specs = with_run_defaults(functions, config.max_completion_length, config.use_cpu)
    if not specs:
        return None
    split = None
    if isinstance(config, GRPOProcessConfig):
        split = make_split(config.step_separator, config.step_pattern, config.step_splitter)
    weights, clip = getattr(config, "reward_weights", None), getattr(config, "reward_clip", None)
    return Rewards(specs, weights, clip, split, rules_of(config))


def with_weights(config: TrainingConfig, rewards: Rewards | None) -> TrainingConfig:
    """The configuration with a weight for each reward where a credit reads them: those that stand beside a reward's
    name, or are 0 for a rule that is only watched, count there too."""
    if rewards is None or getattr(config, "multi_objective_aggregation", None) != "normalize_then_sum":
        return config
    return config.model_copy(update={"reward_weights": rewards.weights})


def check_rewards(rewards: Rewards, rows: list[Row], tokenizer: Any, state: TrainerState) -> None:
    """Try the rewards on a few made-up answers and say what they gave. Raises UserError where they cannot tell right
    from wrong."""
    log.info("trying the rewards on made-up answers (reward_preflight: false leaves this out)")
    found = preflight(rewards, rows, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], state)
    for line in found.lines():
        log.info("  %s", line)
    for warning in found.warnings:
        log.warning("rewards: %s", warning)
    if found.problem is not None:
        raise UserError(found.problem)
